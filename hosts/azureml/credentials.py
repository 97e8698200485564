"""Who Drupe is to Azure: whatever azure-identity finds, and inside a job the identity that the job runs as.

No secret is ever taken from a workflow: `default_auth_params` only says which ways azure-identity may go.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from drupe.core.errors import HostError

__all__ = ["argument_fault", "found_credential", "quiet", "who_is_unknown"]

_KINDS = (
    "environment",
    "workload_identity",
    "managed_identity",
    "shared_token_cache",
    "visual_studio_code",
    "cli",
    "developer_cli",
    "powershell",
    "interactive_browser",
    "broker",
)
_ARGUMENTS = frozenset(
    {
        *(f"exclude_{kind}_credential" for kind in _KINDS),
        "additionally_allowed_tenants",
        "authority",
        "broker_client_id",
        "broker_tenant_id",
        "disable_instance_discovery",
        "interactive_browser_client_id",
        "interactive_browser_tenant_id",
        "managed_identity_client_id",
        "process_timeout",
        "require_envvar",
        "shared_cache_tenant_id",
        "shared_cache_username",
        "visual_studio_code_tenant_id",
        "workload_identity_client_id",
        "workload_identity_tenant_id",
    }
)
_SECRET = re.compile(r"secret|password|token|key|certificate", re.IGNORECASE)
_PRINCIPAL = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID")
_PROOFS = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_PASSWORD")
_TRIED = re.compile(r"^\t(\w+Credential): (.*)", re.MULTILINE)
_CODE = re.compile(r"AADSTS\d+:[^.\n]*")


def argument_fault(name: str) -> str | None:
    """Say what is wrong with an argument of DefaultAzureCredential by its name; None for one that it takes."""
    if name in _ARGUMENTS:
        return None
    if _SECRET.search(name):
        return "a secret does not belong here; set it in the environment"
    near = get_close_matches(name, _ARGUMENTS, 1)
    return f"DefaultAzureCredential has no such argument; {f'did you mean {near[0]}' if near else 'leave it out'}"


def found_credential(arguments: Mapping[str, Any]) -> Any:
    """Return the credential. arguments: DefaultAzureCredential's. Raises HostError."""
    try:
        from azure.identity import ChainedTokenCredential, DefaultAzureCredential
    except ImportError as error:
        message = "the library azure-identity is not installed here; pip install 'drupe[azure]'"
        raise HostError(message, retry=False) from error
    quiet()
    given = dict(arguments)
    if _in_a_job():
        # Which ways the driver leaves out says nothing of a node, whose own identity is a managed one.
        given.pop("exclude_managed_identity_credential", None)
    try:
        found = DefaultAzureCredential(**given)
    except (ValueError, TypeError, ImportError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HostError(f"azureml_client.default_auth_params: {first}", retry=False) from error
    if os.environ.get("OBO_ENDPOINT"):
        # Inside a job that runs as the user who submitted it.
        from azure.ai.ml.identity import AzureMLOnBehalfOfCredential

        return ChainedTokenCredential(AzureMLOnBehalfOfCredential(), found)
    return found


def who_is_unknown(message: str) -> str:
    """Say in one line why nobody is known to Azure here, and what to do. message: what azure-identity said."""
    reasons = list(_reasons({kind: text.strip() for kind, text in _TRIED.findall(message)}, message))
    if _in_a_job():
        way = "see that the compute has an identity (--identity-type SystemAssigned)"
    else:
        way = "run `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"Azure knows nobody here{why}; {way}"


def quiet() -> None:
    """Keep the libraries from writing to the terminal: what goes wrong is told once, in plain words."""
    logging.getLogger("azure").addHandler(logging.NullHandler())
    logging.getLogger("azure").propagate = False
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("azure.") and isinstance(logger, logging.Logger):
            # Without any handler a logger that does not propagate would write to stderr as well.
            logger.handlers = [logging.NullHandler()]


def _in_a_job() -> bool:
    return bool(os.environ.get("AZUREML_RUN_ID"))


def _reasons(tried: Mapping[str, str], message: str) -> Iterator[str]:
    """Yield why each way that somebody meant to go leads nowhere; ways that nobody set up are left out."""
    if "AzureMLOnBehalfOfCredential" in tried:
        yield f"the identity of the job's user can't be had: {_first(tried['AzureMLOnBehalfOfCredential'])}"
    if any(name in os.environ for name in _PROOFS):
        missing = [name for name in _PRINCIPAL if not os.environ.get(name)]
        refused = _CODE.search(tried.get("EnvironmentCredential", message))
        if missing:
            yield f"a service principal is half set: {' and '.join(missing)} not set"
        elif refused:
            yield f"the service principal of AZURE_CLIENT_ID is refused: {refused[0].strip()}"
        elif "authority configuration" in tried.get("EnvironmentCredential", ""):
            yield f"there is no tenant AZURE_TENANT_ID, {os.environ['AZURE_TENANT_ID']}"
        elif "EnvironmentCredential" in tried:
            yield f"the service principal of AZURE_CLIENT_ID: {_first(tried['EnvironmentCredential'])}"
    elif all(os.environ.get(name) for name in _PRINCIPAL):
        yield "a service principal is half set: AZURE_CLIENT_SECRET not set"
    managed = tried.get("ManagedIdentityCredential", "")
    if managed and not re.search(r"no response from the IMDS|timed out|not available|unavailable", managed):
        inner = re.search(r"'message': '([^']+)'", managed)
        yield f"the managed identity is refused: {inner[1] if inner else _first(managed)}"
    cli = tried.get("AzureCliCredential", "")
    if "az login" in cli or "log in" in cli:
        yield "az is there, and nobody is logged in"
    elif cli and "not found" not in cli:
        refused = _CODE.search(cli)
        yield f"az gives no token: {refused[0].strip() if refused else _first(cli)}"


def _first(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().partition(". ")[0].rstrip(".")[:200]

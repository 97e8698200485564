"""The way to an Azure ML workspace: `azureml_client` of a workflow, credentials, retries, and errors in plain words.

Credentials are those that azure-identity finds: the environment, a managed identity, `az login`. None is ever taken
from a workflow. The library's telemetry is off.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, model_validator

from drupe.core.config import FileRef, PluginConfig
from drupe.core.errors import HostError
from drupe.hosts.azureml.credentials import argument_fault, found_credential, quiet, who_is_unknown

__all__ = ["Absent", "ClientConfig", "Workspace", "WorkspaceName", "told"]

T = TypeVar("T")
_log = logging.getLogger("drupe.azureml")
_FULL = re.compile(r"quota|capacity|sizelimit|insufficientstorage", re.IGNORECASE)
_ID = re.compile(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/.*/workspaces/([^/?]+)", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MOST_SECONDS = 120.0


class Absent(HostError):
    """What was asked for is not there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry=False)


class WorkspaceName(PluginConfig):
    """Which workspace: subscription, resource group, name."""

    subscription_id: str
    resource_group: str
    workspace_name: str


class ClientConfig(PluginConfig):
    """`azureml_client`: how to reach the workspace. Either the three names, or a config.json that holds them."""

    subscription_id: str | None = Field(None, description="The subscription.")
    resource_group: str | None = Field(None, description="The resource group.")
    workspace_name: str | None = Field(None, description="The workspace.")
    aml_config_path: FileRef | None = Field(None, description="A config.json as the studio hands it out.")
    keyvault_name: str | None = Field(None, description="The key vault whose secret hf-token is the hub's token.")
    read_timeout: float = Field(60, gt=0, description="Seconds to wait for an answer.")
    max_operation_retries: int = Field(3, ge=0, description="How often a request is tried again.")
    operation_retry_interval: float = Field(5, ge=0, description="Seconds before the second try; doubled each time.")
    default_auth_params: dict[str, Any] | None = Field(
        None, description="Arguments of DefaultAzureCredential: exclude_…, managed_identity_client_id."
    )

    @model_validator(mode="after")
    def _named_once(self) -> ClientConfig:
        given = [self.subscription_id, self.resource_group, self.workspace_name]
        if self.aml_config_path is not None and any(given):
            raise ValueError("aml_config_path names the workspace already; leave it or the three names out")
        names = ("subscription_id", "resource_group", "workspace_name")
        for name, value in zip(names, given, strict=True):
            if value and re.fullmatch(r"<.*>|\$\{.*\}", value.strip()):
                raise ValueError(f"{name} is {value}, which is left to be filled in; the studio shows it")
        if any(given) and not all(given):
            missing = " and ".join(name for name, value in zip(names, given, strict=True) if not value)
            raise ValueError(f"{missing} is missing; {names[0]}, {names[1]} and {names[2]} belong together")
        for name in self.default_auth_params or {}:
            fault = argument_fault(name)
            if fault is not None:
                raise ValueError(f"default_auth_params.{name}: {fault}")
        return self

    @property
    def names_one(self) -> bool:
        """Whether it says which workspace is meant."""
        return bool(self.subscription_id or self.aml_config_path)

    def workspace(self, folder: Path) -> WorkspaceName:
        """Return which workspace is meant. folder: what aml_config_path is relative to. Raises HostError."""
        if self.subscription_id and self.resource_group and self.workspace_name:
            return WorkspaceName(
                subscription_id=self.subscription_id,
                resource_group=self.resource_group,
                workspace_name=self.workspace_name,
            )
        if self.aml_config_path is None:
            message = "azureml_client names no workspace; give subscription_id, resource_group and workspace_name"
            raise HostError(f"{message}, or aml_config_path", retry=False)
        path = folder / Path(self.aml_config_path).expanduser()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if "Scope" in data:  # An older config.json has the whole id.
                found = _ID.search(data["Scope"])
                data = (
                    dict(zip(("subscription_id", "resource_group", "workspace_name"), found.groups(), strict=True))
                    if found
                    else {}
                )
            names = {name: data[name] for name in ("subscription_id", "resource_group", "workspace_name")}
        except OSError as error:
            raise HostError(
                f"{path} can't be read: {error.strerror}; download it from the studio", retry=False
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{path} is no workspace's config.json; expected subscription_id, resource_group, workspace_name"
            raise HostError(message, retry=False) from error
        return WorkspaceName(**names)


class Workspace:
    """A workspace, its registries and storage. Safe to use from several threads."""

    def __init__(self, config: ClientConfig, folder: Path) -> None:
        self.config = config
        self._folder = folder
        self._lock = threading.RLock()
        self._credential: Any = None
        self._clients: dict[str, Any] = {}

    @property
    def name(self) -> WorkspaceName:
        """Which workspace it is. Raises HostError."""
        return self.config.workspace(self._folder)

    @property
    def credential(self) -> Any:
        """What azure-identity found. Raises HostError where the library is not installed."""
        with self._lock:
            if self._credential is None:
                self._credential = found_credential(self.config.default_auth_params or {})
            return self._credential

    def client(self, registry: str | None = None) -> Any:
        """Return the MLClient of the workspace, or of a registry. Raises HostError."""
        with self._lock:
            if (registry or "") not in self._clients:
                self._clients[registry or ""] = self._connect(registry)
            return self._clients[registry or ""]

    def ask(self, what: str, call: Callable[[], T], *, once: bool = False) -> T:
        """Return what a call of the library gives, tried again while the service is busy or gone. Raises HostError.

        what: what is being done, for messages: "submitting the job". call: safe to repeat. once: the library tries
        again by itself.
        """
        delay = self.config.operation_retry_interval
        renewed = False
        left = 0 if once else self.config.max_operation_retries
        while True:
            try:
                return call()
            except Exception as error:
                if not renewed and _status(error) == 401:
                    # A token that ran out on the way: a new one may do. Asked for once, since it may be a wrong one.
                    renewed = True
                    self.forget_token()
                    continue
                if not left or not _passes(error):
                    raise told(error, what) from error
                wait = min(max(_retry_after(error), delay), _MOST_SECONDS)
                _log.info("%s: %s; again in %.1f s", what, _short(error), wait)
                time.sleep(wait)
                delay *= 2
                left -= 1

    def forget_token(self) -> None:
        """Ask for new tokens from now on."""
        with self._lock:
            self._credential = None
            self._clients.clear()

    def _connect(self, registry: str | None) -> Any:
        os.environ.setdefault("AZURE_TRACING_ENABLED", "false")
        try:
            from azure.ai.ml import MLClient
        except ImportError as error:
            message = "the library azure-ai-ml is not installed here; pip install 'drupe[azure]'"
            raise HostError(message, retry=False) from error
        quiet()
        # Retries are `ask`'s, so that their number is the one that the user gave.
        options: dict[str, Any] = {
            "enable_telemetry": False,
            "show_progress": False,
            "retry_total": 0,
            "read_timeout": self.config.read_timeout,
        }
        if registry is not None:
            return MLClient(self.credential, registry_name=registry, **options)
        name = self.name
        return MLClient(self.credential, name.subscription_id, name.resource_group, name.workspace_name, **options)


def told(error: Exception, what: str) -> HostError:
    """Return an error of Azure's libraries in plain words: what was done, what came back, what to do."""
    if isinstance(error, HostError):
        return error
    said, status, kind = _short(error), _status(error), type(error).__name__
    code = str(_code(error))
    if kind in ("CredentialUnavailableError",) or (kind == "ClientAuthenticationError" and status is None):
        return HostError(f"{what}: {who_is_unknown(str(error))}", retry=False)
    if kind in ("ValidationException", "MlException") and "does not exist" in said:
        return Absent(f"{what}: {said}")
    if _FULL.search(code) or status == 507:
        return HostError(f"{what}: there is no room left ({said}); make room or raise the limit", retry=False)
    match status:
        case 401:
            return HostError(f"{what}: the token is not accepted ({said}); run `az login` again", retry=False)
        case 403:
            return HostError(
                f"{what}: permission denied ({said}); see docs/azure.md for the roles it needs", retry=False
            )
        case 404:
            return Absent(f"{what}: {said}")
        case 429:
            return HostError(f"{what}: Azure asks to slow down, and did so again and again ({said})")
        case int() if status < 500 and status != 408:
            return HostError(f"{what}: Azure refused: {said}", retry=False)
        case int():
            return HostError(f"{what}: Azure failed with {status} ({said})")
    if _passes(error):
        return HostError(f"{what}: the connection broke ({said})")
    return HostError(f"{what}: {said}", retry=False)


def _status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _code(error: Exception) -> Any:
    inner = getattr(error, "error", None)
    return getattr(error, "error_code", None) or getattr(inner, "code", None) or ""


def _passes(error: Exception) -> bool:
    """Whether another try may do."""
    status = _status(error)
    if status is not None:
        return status in (408, 429) or (status >= 500 and status != 507 and not _FULL.search(str(_code(error))))
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ServiceRequestError", "ServiceResponseError", "ConnectionError", "TimeoutError"})


def _retry_after(error: Exception) -> float:
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, unit in (("retry-after-ms", 1000), ("x-ms-retry-after-ms", 1000), ("retry-after", 1)):
        for key, value in headers.items():
            if key.lower() == name:
                try:
                    return float(value) / unit
                except ValueError:
                    return 0.0  # A date; the delay of this side does.
    return 0.0


def _short(error: Exception) -> str:
    """Return the first line of what an error says, without the code in front and without addresses' queries."""
    inner = getattr(error, "error", None)
    text = getattr(inner, "message", None) or getattr(error, "message", None) or str(error) or type(error).__name__
    lines = [line.strip() for line in _COLOUR.sub("", str(text)).splitlines() if line.strip()]
    # The library frames some of its messages; the one that counts is marked then.
    lines = [line for line in lines if line.startswith("(x) ")] or lines
    first = re.sub(r"^\(\w+\)\s*", "", lines[0]) if lines else type(error).__name__
    # A shared access signature is a secret.
    return re.sub(r"\?\S*sig=\S+", "?…", first)[:300]

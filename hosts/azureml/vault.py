"""The hub's token in a key vault. It is read where a job runs and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drupe.core.errors import HostError
from drupe.hosts.azureml.client import ClientConfig, Workspace

__all__ = ["hub_token", "secret_exists"]


def hub_token(vault: str, name: str, auth: dict[str, Any] | None) -> str:
    """Return a secret of a key vault. auth: arguments of DefaultAzureCredential. Raises HostError."""
    workspace = Workspace(ClientConfig(default_auth_params=auth), Path())
    what = f"reading the secret {name} of the key vault {vault}"
    return workspace.ask(what, lambda: str(_vault(workspace, vault).get_secret(name).value))


def secret_exists(workspace: Workspace, vault: str, name: str) -> None:
    """Raise HostError unless the secret is there and may be read; what it holds is not kept."""
    workspace.ask(
        f"reading the secret {name} of the key vault {vault}", lambda: bool(_vault(workspace, vault).get_secret(name))
    )


def _vault(workspace: Workspace, vault: str) -> Any:
    try:
        from azure.keyvault.secrets import SecretClient
    except ImportError as error:
        message = "the library azure-keyvault-secrets is not installed; pip install 'drupe[azure]'"
        raise HostError(message, retry=False) from error
    address = vault if vault.startswith("https://") else f"https://{vault}.vault.azure.net"
    return SecretClient(address, workspace.credential, retry_total=0)

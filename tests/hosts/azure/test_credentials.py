"""Who Drupe is to Azure: each way to a token works, or says in one line why it does not and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from drupe.core.errors import HostError
from drupe.hosts.azureml.client import ClientConfig, Workspace
from tests.hosts.azure.cloud import WORKSPACE, Cloud
from tests.hosts.azure.identities import PRINCIPAL, PRINCIPAL_SECRET, TENANT

# Looking for the metadata service of a virtual machine takes seconds where there is none.
_QUICK = {f"exclude_{kind}_credential": True for kind in ("powershell", "developer_cli", "managed_identity", "broker")}


class Person:
    """Somebody on a machine of their own, who has set nothing up yet."""

    def __init__(self, azure: Cloud, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.azure, self._monkeypatch, self.folder = azure, monkeypatch, folder
        for name in ("MSI_ENDPOINT", "MSI_SECRET"):
            monkeypatch.delenv(name)
        self.sets(PATH=str(folder))

    def sets(self, **variables: str) -> None:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)

    def asks(self, **auth: Any) -> str:
        """Ask for the workspace and return how the token was had."""
        client = ClientConfig(**self.azure.client, default_auth_params={**_QUICK, **auth})
        workspace = Workspace(client, Path())
        found = workspace.ask("asking", lambda: workspace.client().workspaces.get(WORKSPACE))
        assert found.name == WORKSPACE
        return self.azure.identities.given[-1]

    def is_told(self, **auth: Any) -> str:
        """Ask in vain and return what is said."""
        with pytest.raises(HostError) as caught:
            self.asks(**auth)
        assert caught.value.retry is False and "\n" not in str(caught.value)
        assert PRINCIPAL_SECRET not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def person(azure: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Person:
    return Person(azure, monkeypatch, tmp_path)


def test_nobody(person: Person) -> None:
    assert person.is_told() == (
        "asking: Azure knows nobody here; run `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and "
        "AZURE_CLIENT_SECRET"
    )


def test_the_azure_cli(person: Person) -> None:
    person.sets(PATH=f"{person.azure.identities.az(person.folder / 'out', logged_in=False)}:/bin:/usr/bin")
    assert "nobody here (az is there, and nobody is logged in); run `az login`" in person.is_told()
    person.sets(PATH=f"{person.azure.identities.az(person.folder / 'in')}:/bin:/usr/bin")
    assert person.asks() == "az"
    assert "Azure knows nobody here; run" in person.is_told(exclude_cli_credential=True)


def test_a_service_principal_of_the_environment(person: Person) -> None:
    person.sets(AZURE_TENANT_ID=TENANT, AZURE_CLIENT_ID=PRINCIPAL)
    assert "(a service principal is half set: AZURE_CLIENT_SECRET not set)" in person.is_told()
    person.sets(AZURE_CLIENT_SECRET="wrong")
    assert "(the service principal of AZURE_CLIENT_ID is refused: AADSTS7000215: Invalid client" in person.is_told()
    person.sets(AZURE_CLIENT_SECRET=PRINCIPAL_SECRET)
    assert person.asks() == "principal"
    person.sets(AZURE_TENANT_ID="cccccccc-0000-0000-0000-000000000000")
    assert "(there is no tenant AZURE_TENANT_ID, cccccccc-0000" in person.is_told()


def test_a_managed_identity(person: Person) -> None:
    person.sets(**person.azure.identities.environment(person.azure.url))
    auth = {"exclude_managed_identity_credential": False}
    assert person.asks(**auth) == "managed"
    told = person.is_told(**auth, managed_identity_client_id="dddddddd-0000-0000-0000-000000000000")
    assert "nobody here (the managed identity is refused: " in told and "Identity not found" in told


def test_a_node_is_itself_whatever_the_driver_leaves_out(person: Person) -> None:
    person.sets(**person.azure.identities.environment(person.azure.url))
    assert "nobody here; run `az login`" in person.is_told()
    person.sets(AZUREML_RUN_ID="drupe-1")
    assert person.asks() == "managed"


def test_a_job_that_runs_as_its_user(person: Person) -> None:
    person.sets(**person.azure.identities.environment(person.azure.url, user=True), AZUREML_RUN_ID="drupe-1")
    assert person.asks() == "user"
    person.azure.identities.users_are_refused = True
    told = person.is_told()
    assert "(the identity of the job's user can't be had: " in told and told.endswith("--identity-type SystemAssigned)")


def test_no_way_at_all_is_left(person: Person) -> None:
    kinds = ("environment", "workload_identity", "managed_identity", "visual_studio_code", "cli", "developer_cli",
             "powershell", "shared_token_cache", "broker")  # fmt: skip
    told = person.is_told(**{f"exclude_{kind}_credential": True for kind in kinds})
    assert "azureml_client.default_auth_params: at least one credential is required" in told


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exclude_cli", "default_auth_params.exclude_cli: DefaultAzureCredential has no such argument; did you mean "
         "exclude_cli_credential"),
        ("client_secret", "default_auth_params.client_secret: a secret does not belong here; set it in the environm"),
        ("whatever", "DefaultAzureCredential has no such argument; leave it out"),
    ],
)  # fmt: skip
def test_an_argument_that_azure_identity_has_not_is_told(name: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ClientConfig(default_auth_params={name: "x"})


def test_all_arguments_of_azure_identity_are_taken() -> None:
    """Those that its documentation lists; a name with token in it is no secret by that."""
    auth = {"exclude_shared_token_cache_credential": True, "additionally_allowed_tenants": ["*"], "process_timeout": 5}
    assert ClientConfig(default_auth_params=auth).default_auth_params == auth
    assert ClientConfig(default_auth_params=None).default_auth_params is None

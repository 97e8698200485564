"""An Azure ML workspace, a registry, a storage account and a key vault behind one server on loopback."""

from __future__ import annotations

import base64
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hosts.azure.proxy import Faults, Proxy, Reply, Request, error_body
from tests.hosts.azure.runner import Run
from tests.hosts.azure.storage import Storage

__all__ = ["RESOURCE_GROUP", "SUBSCRIPTION", "WORKSPACE", "Cloud", "cloud"]

SUBSCRIPTION = "00000000-1111-2222-3333-444444444444"
RESOURCE_GROUP = "drupe-tests"
WORKSPACE = "lab"
_PROVIDER = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}/providers/Microsoft.MachineLearningServices"
_HOME = f"{_PROVIDER}/workspaces/{WORKSPACE}"
_REGION = "westeurope"
_ACCOUNT, _CONTAINER = "labstore", "azureml-blobstore"
_KEY = base64.b64encode(b"the-storage-account-key-that-nobody-may-see-0123456789").decode()
_SIGNATURE = "c2lnbmF0dXJlLW9mLWEtc2hhcmVkLWFjY2Vzcw"
_NAMES = [
    "management.azure.com",
    "login.microsoftonline.com",
    "*.api.azureml.ms",
    "*.experiments.azureml.net",
    "*.blob.core.windows.net",
    "*.dfs.core.windows.net",
    "*.file.core.windows.net",
    "*.vault.azure.net",
]


class Cloud:
    """The whole. faults: what is to go wrong. queued: jobs wait while it is true. secrets: of the key vault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = Faults()
        self.storage = Storage(folder / "storage")
        self.computes: dict[str, dict[str, Any]] = {
            "cpu-cluster": {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_DS3_v2", "scaleSettings": {
                "minNodeCount": 0, "maxNodeCount": 4}}},
            "arc": {"computeType": "Kubernetes", "properties": {"namespace": "ml", "defaultInstanceType": "small",
                "instanceTypes": {"small": {"resources": {}}, "gpu": {"resources": {}}}}},
        }  # fmt: skip
        self.stores: dict[str, tuple[str, str, str]] = {
            "workspaceblobstore": ("AzureBlob", _ACCOUNT, _CONTAINER),
            "lake": ("AzureDataLakeGen2", "labstore", "lake"),
            "workspacefilestore": ("AzureFile", "labstore", "share"),
        }
        self.environments: dict[tuple[str, str], dict[str, Any]] = {}
        self.assets: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        self.jobs: dict[str, Run] = {}
        self.submitted: list[dict[str, Any]] = []
        self.secrets: dict[str, str] = {}
        self.queued = False
        self.quota = ""
        self.tokens: set[str] = set()
        self._count = 0
        self._proxy = Proxy(folder, _NAMES, self._answer, self.faults)
        self.container.mkdir(parents=True, exist_ok=True)

    @property
    def container(self) -> Path:
        """The folder of the workspace's blob store."""
        return self.storage.path(_ACCOUNT, _CONTAINER)

    @property
    def environment(self) -> dict[str, str]:
        """What processes need to find this cloud and to be known to it."""
        identity = {"MSI_ENDPOINT": f"http://127.0.0.1:{self._proxy.port}/msi/token", "MSI_SECRET": "here"}
        return self._proxy.environment | identity

    @property
    def client(self) -> dict[str, Any]:
        """The `azureml_client` of a workflow."""
        return {
            "subscription_id": SUBSCRIPTION,
            "resource_group": RESOURCE_GROUP,
            "workspace_name": WORKSPACE,
            "operation_retry_interval": 0.05,
        }

    def expire_tokens(self) -> None:
        """Let every token that was given out be refused from now on."""
        self.tokens.clear()

    def put_model(
        self, folder: Path, name: str, version: str, *, registry: str = "", kind: str = "custom_model"
    ) -> None:
        """Register a copy of a folder as a model of the workspace, or of a registry."""
        place = f"models/{registry or WORKSPACE}/{name}/{version}"
        shutil.copytree(folder, self.container / place, dirs_exist_ok=True)
        url = f"https://{_ACCOUNT}.blob.core.windows.net/{_CONTAINER}/{place}"
        home = f"subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}/workspaces/{WORKSPACE}"
        path = url if registry else f"azureml://{home}/datastores/workspaceblobstore/paths/{place}"
        self.assets[registry, "models", name, version] = {"modelUri": path, "modelType": kind, "isArchived": False,
            "isAnonymous": False, "properties": {}, "tags": {}, "flavors": {}, "description": ""}  # fmt: skip

    def close(self) -> None:
        for run in self.jobs.values():
            run.kill()
        self._proxy.close()

    # Answers

    def _answer(self, request: Request) -> Reply:
        host, path = request.host, request.path
        if host == "loopback":
            return self._token(request) if path == "/msi/token" else _none(request)
        authorization = request.headers.get("authorization", "")
        known = authorization.removeprefix("Bearer ") in self.tokens
        if host.endswith(".core.windows.net"):
            allowed = known or authorization.startswith(f"SharedKey {host.split('.')[0]}:")
            return self.storage.answer(request, allowed or request.query.get("sig") == _SIGNATURE)
        if path == "/discovery":
            return Reply(200, {"api": f"https://{_REGION}.api.azureml.ms"})  # Asked without a token.
        if not known:
            challenge = {"WWW-Authenticate": 'Bearer authorization="https://login.microsoftonline.com/common", '
                         'resource="https://vault.azure.net"'}  # fmt: skip
            return Reply(401, error_body("ExpiredAuthenticationToken", "the access token has expired"), challenge)
        if host.endswith(".vault.azure.net"):
            name = path.strip("/").split("/")[1]
            if name not in self.secrets:
                return Reply(404, error_body("SecretNotFound", f"a secret with (name/id) {name} was not found"))
            return Reply(200, {"value": self.secrets[name], "id": f"https://{host}/secrets/{name}/1", "attributes": {}})
        if host.endswith(".api.azureml.ms"):
            return self._data_plane(request)
        if host.endswith(".experiments.azureml.net"):
            registry, _, rest = path.partition("/registries/")[2].partition("/")
            return self._assets(request, registry, rest.split("/"))
        return self._management(request)

    def _token(self, request: Request) -> Reply:
        self._count += 1
        claims = base64.urlsafe_b64encode(b'{"tid": "tenant", "oid": "somebody"}').decode().rstrip("=")
        token = f"eyJhbGciOiAibm9uZSJ9.{claims}.token-{self._count}-that-nobody-may-see"
        self.tokens.add(token)
        return Reply(200, {"access_token": token, "expires_on": str(int(time.time()) + 3600), "token_type": "Bearer",
                           "resource": request.query.get("resource", "")})  # fmt: skip

    def _data_plane(self, request: Request) -> Reply:
        path = request.path
        if path.startswith("/registrymanagement/"):
            name = path.split("/registries/")[1].split("/")[0]
            if not any(key[0] == name for key in self.assets):
                return Reply(404, error_body("RegistryNotFound", f"registry {name} was not found"))
            return Reply(200, {"registryName": name, "primaryRegion": _REGION, "regions": [_REGION],
                "primaryRegionResourceProviderUri": f"https://cert-{_REGION}.experiments.azureml.net/",
                "resourceGroup": RESOURCE_GROUP, "subscriptionId": SUBSCRIPTION,
                "registryFqdns": {_REGION: {}}})  # fmt: skip
        found = re.search(r"/runs/([^/]+)(/details|/artifacts/.*)?$", path)
        if found and found[1] in self.jobs:
            return self._run(self.jobs[found[1]])
        return _none(request)

    def _run(self, run: Run) -> Reply:
        logs = {}
        if run.log.exists():
            name = run.log.relative_to(self.container).as_posix()
            url = f"https://{_ACCOUNT}.blob.core.windows.net/{_CONTAINER}/{name}"
            logs["user_logs/std_log.txt"] = f"{url}?sv=2024-01-01&sr=b&sp=r&sig={_SIGNATURE}"
        return Reply(200, {"runId": run.name, "status": run.status, "logFiles": logs, "error": run.error,
                           "properties": {}, "warnings": None, "tags": {}})  # fmt: skip

    def _management(self, request: Request) -> Reply:
        if not request.path.startswith(_HOME):
            what = re.search(r"/workspaces/([^/]+)", request.path)
            name = what[1] if what else request.path
            return Reply(404, error_body("ResourceNotFound", f"The Resource 'workspaces/{name}' was not found"))
        parts = [part for part in request.path[len(_HOME) :].split("/") if part]
        match parts:
            case []:
                return Reply(200, self._workspace())
            case ["datastores"]:
                return Reply(200, {"value": [self._datastore("workspaceblobstore")]})
            case ["datastores", name] if name in self.stores:
                return Reply(200, self._datastore(name))
            case ["datastores", name, "listSecrets"] if name in self.stores:
                return Reply(200, {"secretsType": "AccountKey", "key": _KEY})
            case ["computes", name] if name in self.computes:
                return Reply(200, self._compute(name))
            case ["environments", *_] | ["models", *_]:
                return self._assets(request, "", parts)
            case ["jobs"]:
                return Reply(200, {"value": [self._job(run) for run in self.jobs.values()]})
            case ["jobs", name]:
                return self._put_job(request, name) if request.method == "PUT" else self._get_job(name)
            case ["jobs", name, "cancel"] if name in self.jobs:
                self.jobs[name].cancel()
                return Reply(200)
        return _none(request)

    def _workspace(self) -> dict[str, Any]:
        properties = {
            "friendlyName": WORKSPACE, "discoveryUrl": f"https://{_REGION}.api.azureml.ms/discovery",
            "workspaceId": "99999999-0000-0000-0000-000000000000", "storageAccount": f"/subscriptions/x/{_ACCOUNT}",
            "keyVault": "/subscriptions/x/vault", "provisioningState": "Succeeded",
            "mlFlowTrackingUri": f"azureml://{_REGION}.api.azureml.ms/mlflow/v1.0{_HOME}",
        }  # fmt: skip
        return {"id": _HOME, "name": WORKSPACE, "location": _REGION, "kind": "Default", "tags": {},
                "identity": {"type": "SystemAssigned"}, "properties": properties}  # fmt: skip

    def _datastore(self, name: str) -> dict[str, Any]:
        kind, account, container = self.stores[name]
        field = {"AzureBlob": "containerName", "AzureDataLakeGen2": "filesystem", "AzureFile": "fileShareName"}[kind]
        credentials = {"credentialsType": "AccountKey" if kind != "AzureDataLakeGen2" else "None"}
        properties = {"datastoreType": kind, "accountName": account, field: container, "credentials": credentials,
                      "endpoint": "core.windows.net", "protocol": "https", "isDefault": name == "workspaceblobstore",
                      "tags": {}, "properties": {}}  # fmt: skip
        return {"id": f"{_HOME}/datastores/{name}", "name": name, "properties": properties}

    def _compute(self, name: str) -> dict[str, Any]:
        properties = {"provisioningState": "Succeeded", "computeLocation": _REGION, **self.computes[name]}
        return {"id": f"{_HOME}/computes/{name}", "name": name, "location": _REGION, "properties": properties}

    def _assets(self, request: Request, registry: str, parts: list[str]) -> Reply:
        kind, name, version = parts[0], parts[1], parts[3] if len(parts) > 3 else ""
        home = f"azureml://registries/{registry}" if registry else _HOME
        if kind == "datarefs":
            uri = request.json["blobUri"]
            credential = {"credentialType": "SAS", "sasUri": f"{uri.split('/models/')[0]}?sr=c&sp=rl&sig={_SIGNATURE}"}
            return Reply(200, {"blobReferenceForConsumption": {"blobUri": uri, "credential": credential}})
        if request.method == "PUT" and version:
            self.assets[registry, kind, name, version] = request.json["properties"]
        versions = sorted(key[3] for key in self.assets if key[:3] == (registry, kind, name))

        def item(one: str) -> dict[str, Any]:
            separator = "/versions/"
            properties = self.assets[registry, kind, name, one]
            return {"id": f"{home}/{kind}/{name}{separator}{one}", "name": one, "properties": properties,
                    "systemData": {"createdAt": f"2026-01-01T00:00:0{versions.index(one) % 10}Z"}}  # fmt: skip

        if parts[2:] == ["versions"] and versions:
            return Reply(200, {"value": [item(one) for one in reversed(versions)]})
        if version in versions:
            return Reply(200, item(version))
        if len(parts) == 2 and versions:
            properties = {"latestVersion": versions[-1], "isArchived": False, "properties": {}, "tags": {}}
            return Reply(200, {"id": f"{home}/{kind}/{name}", "name": name, "properties": properties})
        what = f"{name}:{version}" if version else name
        return Reply(404, error_body("UserError", f"Not found asset with name {what} in {registry or WORKSPACE}"))

    # Jobs

    def _job(self, run: Run) -> dict[str, Any]:
        services = {"Studio": {"jobServiceType": "Studio", "endpoint": f"https://ml.azure.com/runs/{run.name}"},
                    "Tracking": {"jobServiceType": "Tracking", "endpoint": f"azureml://{_REGION}.api"}}  # fmt: skip
        properties = {**run.definition, "status": run.status, "services": services}
        return {"id": f"{_HOME}/jobs/{run.name}", "name": run.name, "properties": properties}

    def _get_job(self, name: str) -> Reply:
        if name not in self.jobs:
            return Reply(404, error_body("UserError", f"Run {name} was not found"))
        return Reply(200, self._job(self.jobs[name]))

    def _put_job(self, request: Request, name: str) -> Reply:
        if name in self.jobs:
            return Reply(200, self._job(self.jobs[name]))
        definition = request.json["properties"]
        compute = definition.get("computeId", "").rpartition("/")[2]
        if compute not in self.computes:
            message = f"Unknown compute target '{compute}'."
            return Reply(400, error_body("UserError", message))
        found = re.search(r"environments/([^/]+)/versions/([^/]+)$", definition.get("environmentId", ""))
        curated = "/registries/" in definition.get("environmentId", "")
        if not curated and (found is None or ("", "environments", *found.groups()) not in self.assets):
            return Reply(400, error_body("UserError", f"unknown environment {definition.get('environmentId')}"))
        log = self.container / "ExperimentRun" / f"dcid.{name}" / "user_logs" / "std_log.txt"
        run = self.jobs[name] = Run(name, definition, log)
        self.submitted.append({"name": name, **definition})
        if self.quota:
            run.fail("QuotaExceeded", self.quota)
        else:
            run.start(lambda: not self.queued, self._mounted, self.environment)
        return Reply(201, self._job(run))

    def _mounted(self, uri: str) -> Path:
        found = re.search(r"datastores/([^/]+)/paths/(.*)$", uri)
        assert found, uri
        _, account, container = self.stores[found[1]]
        path = self.storage.path(account, container, found[2])
        path.mkdir(parents=True, exist_ok=True)
        return path


def _none(request: Request) -> Reply:
    return Reply(404, error_body("NotFound", f"{request.method} {request.host}{request.path} is not there"))


@contextmanager
def cloud(folder: Path) -> Iterator[Cloud]:
    """Run a cloud that keeps its things below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    here = Cloud(folder)
    try:
        yield here
    finally:
        here.close()

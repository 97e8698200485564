"""An Azure ML workspace, a registry, a storage account and a key vault behind one server on loopback."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hosts.azure.assets import Assets
from tests.hosts.azure.identities import Identities
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
_KINDS = ("AmlCompute", "ComputeInstance", "Kubernetes")
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
        self.assets = Assets()
        self.identities = Identities()
        self.jobs: dict[str, Run] = {}
        self.submitted: list[dict[str, Any]] = []
        self.secrets: dict[str, str] = {}
        self.queued = False
        self.quota = ""
        self._proxy = Proxy(folder, _NAMES, self._answer, self.faults)
        self.container.mkdir(parents=True, exist_ok=True)

    @property
    def container(self) -> Path:
        """The folder of the workspace's blob store."""
        return self.storage.path(_ACCOUNT, _CONTAINER)

    @property
    def environment(self) -> dict[str, str]:
        """What processes need to find this cloud and to be known to it."""
        return self._proxy.environment | self.identities.environment(self._proxy.url)

    @property
    def url(self) -> str:
        """Where the endpoints are that a machine finds on itself."""
        return self._proxy.url

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
        self.identities.tokens.clear()

    def put_model(
        self, folder: Path, name: str, version: str, *, registry: str = "", kind: str = "custom_model"
    ) -> None:
        """Register a copy of a folder as a model of the workspace, or of a registry."""
        place = f"models/{registry or WORKSPACE}/{name}/{version}"
        shutil.copytree(folder, self.container / place, dirs_exist_ok=True)
        url = f"https://{_ACCOUNT}.blob.core.windows.net/{_CONTAINER}/{place}"
        path = url if registry else _in_the_store(place)
        self.assets.put(registry, "models", name, version, {"modelUri": path, "modelType": kind, "flavors": {}})

    def put_data(self, name: str, version: str, place: str, *, kind: str = "uri_folder") -> None:
        """Register what lies in the workspace's blob store as data. place: of a folder with its slash."""
        self.assets.put("", "data", name, version, {"dataUri": _in_the_store(place), "dataType": kind})

    def put_environment(self, name: str, version: str, *, registry: str = "", **properties: Any) -> None:
        """Register an environment. properties: isArchived and the like."""
        made = {"image": f"{name}-image:{version}", "environmentType": "UserCreated", "osType": "Linux", **properties}
        self.assets.put(registry, "environments", name, version, made)

    def close(self) -> None:
        for run in self.jobs.values():
            run.kill()
        self._proxy.close()

    # Answers

    def _answer(self, request: Request) -> Reply:
        host, path = request.host, request.path
        if host == "loopback":
            return self.identities.local(request) or _none(request)
        if host == "login.microsoftonline.com":
            return self.identities.login(request)
        authorization = request.headers.get("authorization", "")
        known = authorization.removeprefix("Bearer ") in self.identities.tokens
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
            return self._registry(request, registry, rest.split("/"))
        return self._management(request)

    def _data_plane(self, request: Request) -> Reply:
        path = request.path
        if path.startswith("/registrymanagement/"):
            name = path.split("/registries/")[1].split("/")[0]
            if name not in self.assets.registries():
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
                if (request.json or {}).get("expirableSecret"):
                    return Reply(200, {"secretsType": "Sas", "sasToken": f"sv=2024-01-01&sp=rwl&sig={_SIGNATURE}"})
                return Reply(200, {"secretsType": "AccountKey", "key": _KEY})
            case ["computes", name] if name in self.computes:
                return Reply(200, self._compute(name))
            case ["environments" | "models" | "data", _, *_]:
                return self.assets.answer(request, "", _HOME, parts)
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

    def _registry(self, request: Request, registry: str, parts: list[str]) -> Reply:
        if parts[0] == "datarefs":
            uri = request.json["blobUri"]
            credential = {"credentialType": "SAS", "sasUri": f"{uri.split('/models/')[0]}?sr=c&sp=rl&sig={_SIGNATURE}"}
            return Reply(200, {"blobReferenceForConsumption": {"blobUri": uri, "credential": credential}})
        return self.assets.answer(request, registry, f"azureml://registries/{registry}", parts)

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
        if self.computes.get(compute, {}).get("computeType") not in _KINDS:
            message = f"Unknown compute target '{compute}'."
            return Reply(400, error_body("UserError", message))
        place = definition.get("environmentId", "")
        found = re.search(r"(?:registries/([^/]+)/)?environments/([^/]+)/versions/([^/]+)$", place)
        environment = self.assets.get(found[1] or "", "environments", found[2], found[3]) if found else None
        if environment is None:
            return Reply(400, error_body("UserError", f"unknown environment {place}"))
        user = (definition.get("identity") or {}).get("identityType") == "UserIdentity"
        if user and request.headers.get("x-azureml-token") not in self.identities.tokens:
            return Reply(400, error_body("UserError", "a job that runs as its user needs the user's token"))
        log = self.container / "ExperimentRun" / f"dcid.{name}" / "user_logs" / "std_log.txt"
        run = self.jobs[name] = Run(name, definition, log)
        self.submitted.append({"name": name, **definition})
        if self.quota:
            run.fail("QuotaExceeded", self.quota)
        elif (build := environment.get("build")) and not self._built(build):
            run.fail("ImageBuildFailure", f"Image build failed: no {build['dockerfilePath']} in {build['contextUri']}")
        else:
            env = self._proxy.environment | self.identities.environment(self._proxy.url, user=user)
            run.start(lambda: not self.queued, self._mounted, env)
        return Reply(201, self._job(run))

    def _built(self, build: dict[str, Any]) -> bool:
        """Whether an image can be made of a build context, which lies in a blob container."""
        found = re.fullmatch(r"https://([^.]+)\.blob\.core\.windows\.net/([^/]+)/(.+/)", build["contextUri"])
        return found is not None and self.storage.path(found[1], found[2], found[3] + build["dockerfilePath"]).is_file()

    def _mounted(self, uri: str) -> Path:
        found = re.search(r"datastores/([^/]+)/paths/(.*)$", uri)
        assert found, uri
        _, account, container = self.stores[found[1]]
        path = self.storage.path(account, container, found[2])
        path.mkdir(parents=True, exist_ok=True)
        return path


def _in_the_store(place: str) -> str:
    home = f"subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}/workspaces/{WORKSPACE}"
    return f"azureml://{home}/datastores/workspaceblobstore/paths/{place}"


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

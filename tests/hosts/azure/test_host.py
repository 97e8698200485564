"""The host on Azure ML: what goes up, what is found again, and what goes wrong, told in one message."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import HostError, Interrupted
from drupe.core.hosts import Host, JobOptions
from drupe.core.testing.hosts import _PASSES, _PLUGIN, JobFolders
from drupe.core.testing.sites import install_plugin
from tests.hosts.azure.cloud import Cloud
from tests.hosts.support import built_in
from tests.support.workflows import TOY, drupe, manifest, runs, start_drupe, toy_document, write_workflow

_UPLOAD = r"^PUT labstore\.blob.*/drupe/blobs/"
_SUBMIT = r"^PUT management.*/jobs/"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    files = {"drupe_contract/__init__.py": "", "drupe_contract/plugin.py": _PLUGIN}
    files["drupe_contract/passes.py"] = _PASSES
    return install_plugin(tmp_path / "site", "drupe-contract", files, plugins={"contract": "drupe_contract.plugin"})


@pytest.fixture
def make(system: dict[str, Any], site: Path, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts, each as a driver of its own would."""
    made = []

    def one(**changes: Any) -> Host:
        host = built_in(
            "AzureML", tmp_path / "state", **{**system, "environment": {"PYTHONPATH": str(site)}, **changes}
        )
        made.append(host)
        return host

    yield one
    for host in made:
        host.close()


@pytest.fixture
def jobs(tmp_path: Path) -> JobFolders:
    return JobFolders(tmp_path / "jobs")


def run(host: Host, job: Path, cancelled: Callable[[], bool] = lambda: False, **options: Any) -> Mapping[str, Any]:
    return host.run(job, JobOptions(**options), lambda event: None, cancelled)


def fails(host: Host, job: Path, says: str, *, retry: bool) -> None:
    """The host fails with one message of one line."""
    with pytest.raises(HostError, match=says) as caught:
        run(host, job)
    assert caught.value.retry is retry
    assert "\n" not in str(caught.value)


def until(holds: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_is_up_there_is_not_sent_again(azure: Cloud, make: Callable[..., Host], jobs: JobFolders) -> None:
    host = make()
    first = jobs.stage("ContractAppend", {"text": "b"}, name="one")
    assert run(host, first)["status"] == "done"
    assert azure.faults.count(_UPLOAD) == 1
    # The first one's result is the second one's input: it is there already.
    second = jobs.stage("ContractAppend", {"text": "c"}, name="two", text="ab")
    assert run(host, second)["status"] == "done"
    assert (second / "outputs" / "text.txt").read_text() == "abc"
    assert run(make(), jobs.stage("ContractAppend", {"text": "d"}, name="three", text="ab"))["status"] == "done"
    assert azure.faults.count(_UPLOAD) == 1
    assert azure.faults.count(r"^PUT .*/environments/") == 1
    tags = [job["tags"] for job in azure.submitted]
    assert [tag["drupe.step"] for tag in tags] == ["one", "two", "three"]
    assert {tag["drupe.attempt"] for tag in tags} == {"1"}


def test_versions_are_asked_once_an_environment(azure: Cloud, make: Callable[..., Host]) -> None:
    azure.put_environment("team", "1")
    labelled = {"aml_docker_config": None, "aml_environment_config": {"name": "team", "label": "latest"}}
    found = make(**labelled).describe()
    assert found.versions["torch"] and found.drupe and found.slots == 4 and found.environment == "team:1"
    assert make(**labelled).describe() == found
    assert [job["tags"]["drupe.kind"] for job in azure.submitted] == ["facts"]
    # A label that moved is another environment: what is installed in it is asked anew, and steps are keyed by it.
    azure.put_environment("team", "2")
    assert make(**labelled).describe().environment == "team:2"
    assert len(azure.submitted) == 2
    # Who joins a run, or verifies it, is told what the label meant there.
    joined = make(**labelled)
    joined.use_environment("team:1")
    assert joined.describe() == found and len(azure.submitted) == 2


def test_the_next_run_finds_the_job_of_a_killed_driver(azure: Cloud, system: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is submitted twice, and no step of it done twice."""
    there = {"PYTHONPATH": str(TOY), "DRUPE_TOY_LOG": str(tmp_path / "toy.log")}
    del system["aml_docker_config"]
    system["aml_environment_config"] = {"name": "team", "label": "latest"}
    azure.put_environment("team", "9")
    azure.put_environment("team", "10")
    systems = {"here": {"type": "AzureML", **system, "environment": there}}
    passes = {"nap": {"type": "Sleepy", "steps": 12, "seconds": 0.1}}
    document = toy_document(tmp_path, systems=systems, passes=passes)
    del document["evaluators"], document["evaluator"]
    path = write_workflow(tmp_path, document)
    driver = start_drupe("run", path, folder=tmp_path)
    try:
        until(lambda: runs(tmp_path).count("Sleepy 2"))
    finally:
        driver.kill()
        driver.communicate()
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in runs(tmp_path) if "Sleepy" in line] == [f"Sleepy {step}" for step in range(12)]
    assert [job["tags"]["drupe.step"] for job in azure.submitted[1:]] == ["input model", "nap"]
    assert not list((tmp_path / "cache").glob("hosts/here/waiting/*"))
    # What the label meant is in every job, and in the evidence.
    assert {job["environmentId"].rpartition("/environments/")[2] for job in azure.submitted} == {"team/versions/10"}
    assert manifest(tmp_path)["resolved"] == {"environments": {"here": "team:10"}}


def test_a_busy_service_is_given_the_time_that_it_asks_for(
    azure: Cloud, make: Callable[..., Host], jobs: JobFolders
) -> None:
    azure.faults.add(_SUBMIT, 429, headers={"Retry-After": "1"}, code="TooManyRequests")
    azure.faults.add(r"^GET management.*/jobs/", 429, headers={"Retry-After": "0"}, times=2, skip=1)
    started = time.monotonic()
    assert run(make(), jobs.stage("ContractAppend"))["status"] == "done"
    assert time.monotonic() - started > 1
    assert azure.faults.count(_SUBMIT) == 2 and len(azure.submitted) == 1


def test_server_faults_and_broken_connections_cost_a_retry(
    azure: Cloud, make: Callable[..., Host], jobs: JobFolders
) -> None:
    met = [
        azure.faults.add(r"^GET management.*/datastores", 500),
        azure.faults.add(_SUBMIT, 503),
        azure.faults.add(_UPLOAD, drop=True),
        azure.faults.add(r"^PUT .*/request\.json", 500),
        azure.faults.add(r"^GET .*/runs/", 502),
        azure.faults.add(r"^GET .*/answer\.json", drop=True),
    ]
    job = jobs.stage("ContractAppend", {"text": "b"})
    assert run(make(), job)["status"] == "done"
    assert [fault.hits for fault in met] == [1] * 6
    assert (job / "outputs" / "text.txt").read_text() == "ab"
    assert len(azure.submitted) == 1


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (2, 3)])
def test_how_often_and_how_long_a_request_is_tried(
    azure: Cloud, make: Callable[..., Host], retries: int, asked: int
) -> None:
    client = {**azure.client, "max_operation_retries": retries, "read_timeout": 0.5}
    host = make(azureml_client=client)
    azure.faults.add(r"^GET management.*/computes/", 503, times=99, message="busy")
    (fault,) = host.check()
    assert "looking for the compute cpu-cluster: Azure failed with 503 (busy)" in fault.found
    assert azure.faults.count(r"^GET management.*/computes/") == asked
    # An answer that does not come counts as a failure as well.
    azure.faults.add(r"^GET management.*/datastores", delay=1.5, times=99)
    (_, slow) = host.check()
    assert slow.path == "datastore" and "the connection broke" in slow.found
    assert azure.faults.count(r"^GET management.*/datastores") == asked + 1


def test_a_token_that_ran_out_is_renewed(azure: Cloud, make: Callable[..., Host], jobs: JobFolders) -> None:
    host = make()
    assert run(host, jobs.stage("ContractAppend"))["status"] == "done"
    azure.expire_tokens()
    assert run(host, jobs.stage("ContractAppend", name="next"))["status"] == "done"


def test_what_stays_wrong_is_told_in_one_message(
    azure: Cloud, make: Callable[..., Host], jobs: JobFolders, tmp_path: Path
) -> None:
    job = jobs.stage("ContractAppend")
    fails(make(aml_compute="nowhere"), job, "submitting job .* to nowhere: Azure refused: Unknown compute", retry=False)
    azure.faults.add(r"^GET management.*/datastores", 403, code="AuthorizationFailed", message="no read on datastores")
    fails(make(), job, "permission denied .no read on datastores", retry=False)
    azure.storage.denied = True
    fails(make(), job, "the datastore workspaceblobstore: permission denied", retry=False)
    azure.storage.denied, azure.storage.full = False, True
    fails(make(), job, "uploading .* no room left", retry=False)
    azure.storage.full = False
    azure.faults.add(_SUBMIT, 500, times=99, message="sorry")
    fails(make(), job, "Azure failed with 500 .sorry", retry=True)
    azure.quota, azure.faults = "the quota of 0 cores is used up", type(azure.faults)()
    azure._proxy.faults = azure.faults
    fails(make(), job, "got no node: the quota of 0 cores", retry=False)
    azure.quota = ""
    assert len(azure.submitted) == 1
    conda = tmp_path / "conda.yaml"
    conda.write_text("dependencies:\n  - python\n  - pip: [drupe\n")
    broken = make(aml_docker_config={"conda_file_path": str(conda)})
    fails(broken, job, r"conda.yaml, line \d+: .*expected a conda environment file", retry=False)
    assert [fault.path for fault in broken.check()] == ["aml_docker_config.conda_file_path"]


def test_a_job_that_was_deleted_or_cancelled_by_somebody(
    azure: Cloud, make: Callable[..., Host], jobs: JobFolders
) -> None:
    def meanwhile(do: Callable[[str], Any]) -> None:
        def act() -> None:
            until(lambda: any(run.status == "Running" for run in azure.jobs.values()))
            do(next(name for name, run in azure.jobs.items() if run.status == "Running"))

        threading.Thread(target=act, daemon=True).start()

    meanwhile(lambda name: azure.jobs.pop(name).kill())
    fails(make(), jobs.stage("ContractNap", {"naps": 300}, name="deleted"), "was it deleted there", retry=False)
    meanwhile(lambda name: azure.jobs[name].cancel())
    fails(make(), jobs.stage("ContractNap", {"naps": 300}, name="stopped"), "was cancelled in Azure ML", retry=False)


def test_a_long_queue(azure: Cloud, make: Callable[..., Host], jobs: JobFolders) -> None:
    azure.queued = True
    fails(make(queue_timeout=1), jobs.stage("ContractAppend"), "queue_timeout .1 s. for cpu-cluster", retry=False)
    stop = threading.Event()
    threading.Timer(1, stop.set).start()
    with pytest.raises(Interrupted, match="waited for its turn"):
        run(make(), jobs.stage("ContractAppend", name="other"), stop.is_set)
    until(lambda: all(run.status == "Canceled" for run in azure.jobs.values()))


def test_a_file_that_was_damaged_up_there_is_sent_again(
    azure: Cloud, make: Callable[..., Host], jobs: JobFolders
) -> None:
    host = make()
    assert run(host, jobs.stage("ContractAppend", {"text": "b"}))["status"] == "done"
    for blob in (azure.container / "drupe" / "blobs").glob("*/*"):
        blob.write_bytes(b"x" * blob.stat().st_size)
    for rest in azure.folder.parent.glob("cloud/node-*"):
        assert not rest
    again = jobs.stage("ContractAppend", {"text": "c"}, name="again")
    fails(host, again, "not in the datastore as they should be", retry=True)
    assert run(host, again)["status"] == "done"
    assert (again / "outputs" / "text.txt").read_text() == "ac"


def test_the_hubs_token_reaches_the_job_and_is_struck_out_of_its_log(
    azure: Cloud, make: Callable[..., Host], jobs: JobFolders, site: Path
) -> None:
    passes = site / "drupe_contract" / "passes.py"
    told = passes.read_text().replace('"about to fail"', '"about to fail with %s", os.environ["HF_TOKEN"]')
    passes.write_text(told.replace('"this pass always fails"', 'os.environ["HF_TOKEN"]'))
    azure.secrets["hf-token"] = "hf_that_nobody_may_see"
    # The job runs as its user: so it is the user's token that opens the key vault.
    client = {**azure.client, "keyvault_name": "lab-vault"}
    host = make(azureml_client=client, hf_token=True, identity="user")
    job = jobs.stage("ContractFail")
    result = run(host, job)
    assert result["error"]["message"] == "ValueError: [secret]"
    assert "about to fail with [secret]" in (job / "log.txt").read_text()
    assert all(b"hf_that_nobody" not in path.read_bytes() for path in azure.container.rglob("*") if path.is_file())
    assert "hf_that_nobody" not in str(azure.submitted)
    assert azure.submitted[-1]["identity"]["identityType"] == "UserIdentity"
    assert azure.identities.given[-1] == "user"
    azure.secrets.clear()
    fails(host, jobs.stage("ContractFail", name="other"), "secret hf-token of the key vault lab-vault", retry=False)


def test_kubernetes_compute_takes_an_instance_type(azure: Cloud, make: Callable[..., Host], jobs: JobFolders) -> None:
    resources = {"cpus": 1, "instance_type": "gpu", "shm_size": "1g", "properties": {"AISuperComputer": {"tier": 1}}}
    arc = make(aml_compute="arc", namespace="ml", resources=resources, tags={"run": 3})
    assert arc.check() == []
    assert run(arc, jobs.stage("ContractAppend"))["status"] == "done"
    (sent,) = azure.submitted
    assert sent["resources"]["instanceType"] == "gpu" and sent["computeId"].endswith("/computes/arc")
    assert sent["resources"]["shmSize"] == "1g" and sent["resources"]["properties"] == resources["properties"]
    assert sent["tags"]["run"] == "3"
    wrong = make(aml_compute="arc", instance_type="large", namespace="other").check()
    assert [fault.path for fault in wrong] == ["instance_type", "namespace"]
    assert [fault.path for fault in make(instance_type="large").check()] == ["instance_type"]
    inner = make(resources={"instance_type": "large"})
    assert [fault.path for fault in inner.check()] == ["resources.instance_type"]


@pytest.mark.parametrize(
    ("compute", "says"),
    [
        ({"computeType": "ComputeInstance", "properties": {"state": "Stopped"}}, "the compute instance dev is stopped;"
         " expected one that runs; az ml compute start -n dev"),
        ({"computeType": "ComputeInstance", "properties": {"state": "Running"}}, ""),
        ({"computeType": "AmlCompute", "properties": {"scaleSettings": {"minNodeCount": 0, "maxNodeCount": 0}}},
         "the cluster dev may have no node (max-instances 0); az ml compute update -n dev --max-instances 1"),
        ({"computeType": "AmlCompute", "provisioningState": "Creating", "properties": {}},
         "dev is creating, not ready"),
        ({"computeType": "Databricks", "properties": {}}, "dev is of another kind, which runs no jobs; expected a "
         "cluster (AmlCompute), a compute instance, or attached Kubernetes"),
        ({"computeType": "VirtualMachine", "properties": {}}, "dev is of the kind virtualmachine, which runs no jobs; "
         "expected a cluster (AmlCompute), a compute instance, or attached Kubernetes"),
    ],
)  # fmt: skip
def test_a_compute_that_is_there_and_runs_no_job(
    azure: Cloud, make: Callable[..., Host], compute: dict[str, Any], says: str
) -> None:
    azure.computes["dev"] = compute
    assert [str(fault) for fault in make(aml_compute="dev").check()] == ([f"aml_compute: {says}"] if says else [])


def test_check_says_all_that_is_missing(azure: Cloud, make: Callable[..., Host]) -> None:
    client = {**azure.client, "keyvault_name": "lab-vault"}
    host = make(aml_compute="nowhere", datastore="none", azureml_client=client, hf_token=True)
    assert [fault.path for fault in host.check()] == ["aml_compute", "datastore", "azureml_client.keyvault_name"]
    azure.secrets["hf-token"] = "hf_1"
    assert make(azureml_client=client, hf_token=True).check() == []
    other = {**azure.client, "workspace_name": "other"}
    (fault,) = make(azureml_client=other).check()
    assert fault.path == "azureml_client" and "other" in fault.found
    assert all("\n" not in str(fault) for fault in host.check())

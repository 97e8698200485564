"""Ray on a cluster of two nodes in processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.core.context import Resources
from drupe.core.errors import HostError
from drupe.core.hosts import Host, JobOptions
from drupe.core.testing import HostContract, JobFolders, contract_site
from tests.hosts.support import built_in

pytest.importorskip("ray", reason="Ray is not installed (pip install 'drupe[ray]')")
pytestmark = pytest.mark.slow


def _token(folder: Path) -> Path:
    (folder / "token").write_text("t" * 64)
    return folder / "token"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(_token(tmp_path_factory.mktemp("ray"))))
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20},
    )
    cluster.add_node(num_cpus=2, num_gpus=1, resources={"acme_npu": 1}, object_store_memory=100 * 2**20)
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def reach(cluster: Any, tmp_path: Path) -> Iterator[Any]:
    made: list[Host] = []

    def reach(**config: Any) -> Host:
        given = {"address": cluster.address, "folder": str(tmp_path / "far away"), **config}
        made.append(built_in("Ray", tmp_path / "state", **given))
        return made[-1]

    yield reach
    for host in made:
        host.close()


@pytest.fixture(scope="module")
def shared(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that is connected already, and has a worker."""
    folder = tmp_path_factory.mktemp("ray")
    variables = {"PYTHONPATH": str(contract_site(folder / "site"))}
    config = {"address": cluster.address, "folder": str(folder / "far away"), "environment": variables}
    host = built_in("Ray", folder / "state", **config)
    yield host
    host.close()


class TestRay(HostContract):
    artifact_bytes = 64 << 20

    @pytest.fixture
    def host(self, shared: Host) -> Host:
        return shared

    @pytest.fixture
    def own(self, reach: Any, site: Path) -> Host:
        """A host whose workers end with the case: while they are idle they hold what other cases ask for."""
        host: Host = reach(environment={"PYTHONPATH": str(site)})
        return host

    @pytest.fixture
    def failing_host(self, reach: Any) -> Host:
        host: Host = reach(custom_resources={"no_such_thing": 1})
        return host

    def test_half_a_gpu_each(self, own: Host, jobs: JobFolders) -> None:
        """Two jobs share the cluster's only GPU at once."""
        from concurrent.futures import ThreadPoolExecutor

        resources = Resources(cpus=1, gpus=0.5)
        folders = [jobs.stage("ContractEnvironment", {"variable": "CUDA_VISIBLE_DEVICES"}, name=n) for n in "ab"]
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda folder: self.run(own, folder, resources=resources), folders))
        assert [result["status"] for result in done] == ["done", "done"]
        assert [(f / "outputs" / "text.txt").read_text() for f in folders] == ["0", "0"]

    def test_a_custom_resource_is_asked_for(self, reach: Any, site: Path, jobs: JobFolders) -> None:
        """Only the node that declares it runs the job."""
        host = reach(environment={"PYTHONPATH": str(site)}, custom_resources={"acme_npu": 1})
        assert not host.check()
        assert self.run(host, jobs.stage("ContractAppend"))["status"] == "done"

    def test_a_runtime_env_reaches_the_job(self, reach: Any, site: Path, jobs: JobFolders) -> None:
        """Beside the system's own variables; where both name one, Ray's wins."""
        own = {"PYTHONPATH": str(site), "GIVEN": "by the system"}
        host = reach(environment=own, runtime_env={"env_vars": {"GIVEN": "by the runtime_env"}})
        job = jobs.stage("ContractEnvironment", {"variable": "GIVEN"})
        assert self.run(host, job)["status"] == "done"
        assert (job / "outputs" / "text.txt").read_text() == "by the runtime_env"

    def test_a_timed_job_has_a_node_to_itself(self, own: Host, jobs: JobFolders) -> None:
        """It asks for all cores of a node."""
        job = jobs.stage("ContractAppend")
        assert self.run(own, job, exclusive=True)["status"] == "done"
        assert own._idle[-1][0] == (2.0, 0.0, True)  # type: ignore[attr-defined]


def test_what_no_node_has_is_told_before_work_starts(reach: Any, tmp_path: Path) -> None:
    host = reach()
    job = JobFolders(tmp_path / "jobs").stage("ContractAppend")
    with pytest.raises(HostError, match="no node has more than 1") as caught:
        host.run(job, JobOptions(resources=Resources(gpus=4)), lambda event: None, lambda: False)
    assert caught.value.retry is False
    (fault,) = reach(resources={"gpus": 4}).check()
    assert "resources.gpus" in str(fault)
    (fault,) = reach(custom_resources={"acme_npu": 2}).check()
    assert "acme_npu" in str(fault)

"""LocalSystem with a sandbox: the contract of hosts, and what the sandbox keeps from a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drupe.core.hosts import Host, JobOptions
from drupe.core.testing import HostContract, JobFolders
from drupe.core.testing.sites import install_plugin
from drupe.hosts.bubblewrap import sandbox_fault
from tests.hosts.support import built_in

pytestmark = pytest.mark.skipif(sandbox_fault() is not None, reason=f"no sandbox here: {sandbox_fault()}")

_PROBE = """
import json
import os
import socket
from pathlib import Path

from drupe import Model, Pass


class Probe(Pass):
    def run(self, model, config, context):
        found = {"home": sorted(os.listdir(Path.home())), "secret": os.environ.get("A_SECRET", "unset")}
        try:
            socket.create_connection(("1.1.1.1", 53), timeout=2)
            found["network"] = "reachable"
        except OSError as error:
            found["network"] = "refused"
        for name, path in (("root", Path("/etc/drupe")), ("input", model.folder / "text.txt")):
            try:
                path.write_text("changed")
                found[name] = "written"
            except OSError:
                found[name] = "read-only"
        (context.output_dir / "text.txt").write_text(json.dumps(found))
        return Model.from_dir("text", context.output_dir)
"""
_PLUGIN = """
from drupe import PassSpec, hookimpl


@hookimpl
def drupe_passes():
    return [PassSpec(name="Probe", target="drupe_probe.passes:Probe", accepts={"text"}, produces="text")]
"""


class TestBubblewrap(HostContract):
    artifact_bytes = 64 << 20

    @pytest.fixture
    def host(self, site: Path, tmp_path: Path) -> Iterator[Host]:
        # Pytest's folders lie below /tmp, which a sandbox has for itself: what a job needs of it is bound.
        host = built_in("LocalSystem", tmp_path / "state", sandbox="bubblewrap", environment={"PYTHONPATH": str(site)})
        yield host
        host.close()


def test_a_job_has_no_network_no_secrets_and_nothing_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"drupe_probe/__init__.py": "", "drupe_probe/plugin.py": _PLUGIN, "drupe_probe/passes.py": _PROBE}
    site = install_plugin(tmp_path / "site", "drupe-contract", files, plugins={"probe": "drupe_probe.plugin"})
    monkeypatch.setenv("A_SECRET", "value")
    host = built_in("LocalSystem", tmp_path / "state", sandbox="bubblewrap", environment={"PYTHONPATH": str(site)})
    job = JobFolders(tmp_path / "jobs").stage("Probe")
    result = host.run(job, JobOptions(), lambda event: None, lambda: False)
    assert result["status"] == "done", result["error"]
    import json

    found = json.loads((job / "outputs" / "text.txt").read_text())
    assert found["network"] == "refused"
    assert found["secret"] == "unset"
    assert found["root"] == found["input"] == "read-only"
    assert ".bashrc" not in found["home"]
    assert (job / "inputs" / "model" / "text.txt").read_text() == "a"

"""The index on disk: what it knows is not imported, and whatever changes makes it look again."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from drupe.testing import install_plugin
from tests.support.commands import run_command

PLUGIN = """
from pathlib import Path

from drupe import PassSpec, hookimpl

with Path({sentinel!r}).open("a") as handle:
    handle.write("imported\\n")

@hookimpl
def drupe_passes():
    return [PassSpec(name={name!r}, target="nowhere:Nothing", accepts={{"hf"}})]
"""


class Environment:
    """A folder of plugins, looked at by fresh processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.sentinel = folder / "sentinel"

    def install(self, name: str = "First", version: str = "1.0", distribution: str = "acme-drupe") -> None:
        package = distribution.replace("-", "_")
        files = {f"{package}/__init__.py": "", f"{package}/plugin.py": self.source(name)}
        install_plugin(self.site, distribution, files, plugins={"acme": f"{package}.plugin"}, version=version)

    def source(self, name: str) -> str:
        return PLUGIN.format(sentinel=str(self.sentinel), name=name)

    def imports(self) -> int:
        return len(self.sentinel.read_text().splitlines()) if self.sentinel.exists() else 0

    def drupe(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(self.site), "DRUPE_HOME": str(self.folder / "home"), **variables}
        return run_command(arguments, env=env, cwd=self.folder)

    def passes(self, *arguments: str, **variables: str) -> list[str]:
        """The passes of the plugin, as `drupe passes` lists them."""
        done = self.drupe(*arguments, "passes", "--json", **variables)
        assert done.returncode == 0, done.stderr
        return [entry["name"] for entry in json.loads(done.stdout) if entry["distribution"] != "drupe"]

    def plugin(self, **variables: str) -> dict[str, Any]:
        done = self.drupe("plugins", "--all", "--json", **variables)
        assert done.returncode == 0, done.stderr
        [found] = [p for p in json.loads(done.stdout) if p["name"] == "acme"]
        return dict(found)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path)
    made.install()
    return made


def is_ours(name: str) -> bool:
    return name in ("First", "Second")


def ours(environment: Environment, *arguments: str, **variables: str) -> list[str]:
    return [name for name in environment.passes(*arguments, **variables) if is_ours(name)]


def test_what_the_index_knows_is_not_imported(environment: Environment) -> None:
    assert ours(environment) == ["First"]
    assert environment.imports() == 1
    assert ours(environment) == ["First"]
    for arguments in (["--help"], ["plugins"], ["passes"]):
        assert environment.drupe(*arguments).returncode == 0
    assert environment.imports() == 1


def test_an_edit_of_the_plugin_is_seen(environment: Environment) -> None:
    ours(environment)
    (environment.site / "acme_drupe" / "plugin.py").write_text(environment.source("Second"))
    assert ours(environment) == ["Second"]


def test_an_edit_of_a_module_that_the_plugin_imports_is_seen(environment: Environment) -> None:
    package = environment.site / "acme_drupe"
    (package / "names.py").write_text('NAME = "First"\n')
    source = environment.source("X").replace("name='X'", "name=NAME")
    (package / "plugin.py").write_text(source.replace("from drupe", "from acme_drupe.names import NAME\nfrom drupe", 1))
    assert ours(environment) == ["First"]
    (package / "names.py").write_text('NAME = "Second"  # changed\n')
    assert ours(environment) == ["Second"]


def test_an_upgrade_is_seen(environment: Environment) -> None:
    ours(environment)
    (environment.site / "acme_drupe-1.0.dist-info").rename(environment.site / "old")
    environment.install("Second", version="2.0")
    assert ours(environment) == ["Second"]
    assert environment.plugin()["version"] == "2.0"


def test_an_uninstall_is_seen(environment: Environment) -> None:
    ours(environment)
    (environment.site / "acme_drupe-1.0.dist-info").rename(environment.site / "gone")
    assert ours(environment) == []


def test_a_new_plugin_is_seen_and_the_old_one_is_not_imported_again(environment: Environment) -> None:
    ours(environment)
    environment.install("Second", distribution="other-drupe")
    assert ours(environment) == ["First", "Second"]
    assert environment.imports() == 2


def test_a_changed_entry_point_is_seen(environment: Environment) -> None:
    ours(environment)
    (environment.site / "acme_drupe" / "second.py").write_text(environment.source("Second"))
    points = environment.site / "acme_drupe-1.0.dist-info" / "entry_points.txt"
    points.write_text("[drupe]\nacme = acme_drupe.second\n")
    assert ours(environment) == ["Second"]


def test_a_damaged_index_is_written_anew(environment: Environment) -> None:
    ours(environment)
    for path in (environment.folder / "home" / "plugins").iterdir():
        path.write_text("{")
    assert ours(environment) == ["First"]


def test_a_home_that_cannot_be_written_costs_time_only(environment: Environment) -> None:
    blocked = environment.folder / "file"
    blocked.write_text("")
    assert ours(environment, DRUPE_HOME=str(blocked)) == ["First"]


def test_a_blocked_plugin_is_never_imported(environment: Environment) -> None:
    for variables in ({"DRUPE_PLUGINS_BLOCK": "acme-drupe"}, {"DRUPE_NO_PLUGINS": "1"}):
        assert ours(environment, **variables) == []
        assert environment.drupe("--help", **variables).returncode == 0
        assert environment.drupe("plugins", "check", "acme-drupe", **variables).returncode == 0
        assert environment.drupe("passes", "First", **variables).returncode == 2
    assert ours(environment, "--no-plugins") == []
    assert environment.imports() == 0


def test_a_workflow_that_blocks_a_plugin_never_imports_it(environment: Environment) -> None:
    workflow = {
        "input_model": {"type": "HfModel", "model_path": "nowhere"},
        "passes": {"first": {"type": "First"}},
        "plugins": {"block": ["acme-drupe"]},
    }
    path = environment.folder / "w.json"
    path.write_text(json.dumps(workflow))
    for command in ("validate", "run", "plan", "rehearse"):
        done = environment.drupe(command, str(path))
        assert done.returncode == 2, done.stdout + done.stderr
    assert environment.imports() == 0


def test_a_name_of_a_plugin_that_became_blocked_says_so(environment: Environment) -> None:
    ours(environment)
    done = environment.drupe("passes", "First", DRUPE_PLUGINS_BLOCK="acme-drupe")
    assert "plugin acme (acme-drupe 1.0), which is blocked: DRUPE_PLUGINS_BLOCK blocks acme-drupe" in done.stderr
    assert environment.plugin(DRUPE_PLUGINS_BLOCK="acme-drupe")["status"] == "blocked"


def test_a_required_plugin_that_is_absent_is_an_error(environment: Environment) -> None:
    path = environment.folder / "w.json"
    path.write_text(json.dumps({"plugins": {"require": ["acme-drupe>=2", "absent-drupe"]}}))
    done = environment.drupe("validate", str(path))
    assert done.returncode == 2
    assert "requires acme-drupe>=2; installed is acme-drupe 1.0" in done.stderr
    assert "requires absent-drupe, which is not installed" in done.stderr


def test_a_broken_plugin_is_tried_again_when_it_is_asked_for(environment: Environment) -> None:
    """What was missing may be there now without a trace in the plugin's files."""
    licence = environment.folder / "licence"
    source = environment.source("First")
    check = f"if not Path({str(licence)!r}).exists():\n    raise RuntimeError('no licence')\n\n@hookimpl"
    (environment.site / "acme_drupe" / "plugin.py").write_text(source.replace("@hookimpl", check))
    assert environment.plugin()["status"] == "broken"
    assert "no licence" in environment.drupe("passes", "First").stderr
    licence.write_text("")
    done = environment.drupe("passes", "First")
    assert "nowhere" in done.stderr  # Now the plugin is fine and its pass is asked for.
    assert environment.plugin()["status"] == "active"


def test_what_a_plugin_prints_stays_out_of_stdout(environment: Environment) -> None:
    (environment.site / "acme_drupe" / "plugin.py").write_text("print('hello')\n" + environment.source("First"))
    assert ours(environment) == ["First"]

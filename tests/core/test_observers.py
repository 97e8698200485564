"""Observers hear of the end of every step that started, however it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from drupe.testing import install_plugin
from tests.support.workflows import drupe, toy_document, write_workflow

PLUGIN = """
import json, os
from drupe import Host, HostConfig, HostDescription, HostError, HostSpec, hookimpl


def say(*what):
    with open(os.environ["HEARD"], "a") as file:
        file.write(json.dumps(what) + "\\n")


@hookimpl
def drupe_step_started(step):
    say("started", step["kind"], step["name"], None)


@hookimpl
def drupe_step_finished(step, record, error):
    say("finished", step["kind"], step["name"], error)


@hookimpl
def drupe_hosts():
    return [HostSpec(name="Gone", target="ears.plugin:Gone")]


class Gone(Host):
    Config = HostConfig

    def describe(self):
        return HostDescription(versions={}, devices=[{"device": "cpu", "cores": 1}])

    def run(self, job, options, events, cancelled):
        raise HostError("the rack is dark", retry=False)
"""


def heard(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[list[Any]]:
    site = install_plugin(
        folder / "site", "ears", {"ears/__init__.py": "", "ears/plugin.py": PLUGIN}, plugins={"ears": "ears.plugin"}
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HEARD", str(folder / "heard"))
    document = toy_document(folder, **changes)
    del document["evaluators"], document["evaluator"]
    done = drupe("run", write_workflow(folder, document), folder=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    return [json.loads(line) for line in (folder / "heard").read_text().splitlines()]


@pytest.mark.parametrize(
    ("changes", "name", "cause"),
    [
        ({"passes": {"odd": {"type": "ChangesInput"}}}, "odd", "changed its input model"),
        ({"passes": {"odd": {"type": "Raises"}}}, "odd", "the toy is broken"),
        (
            {
                "systems": {"here": {"type": "LocalSystem", "in_process": True}, "gone": {"type": "Gone"}},
                "passes": {"odd": {"type": "Append", "host": "gone"}},
            },
            "odd",
            "the rack is dark",
        ),
    ],
    ids=["changed input", "failed pass", "failed host"],
)
def test_a_step_that_fails_is_told_once(
    changes: dict[str, Any], name: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = heard(tmp_path, monkeypatch, **changes)
    about = [entry for entry in told if entry[2] == name]
    assert [entry[0] for entry in about] == ["started", "finished"]
    assert cause in about[1][3]
    imported = [entry for entry in told if entry[1] == "import"]
    assert [(entry[0], entry[3]) for entry in imported] == [("started", None), ("finished", None)]

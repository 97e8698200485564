"""What a plugin's author gets wrong is told in one clear message, where it is used and by `drupe plugins check`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from drupe import Choice, FloatRange, IntRange, Ordered, searchable
from drupe.testing import install_plugin
from tests.support.workflows import drupe

PLUGIN = """
from drupe import PassSpec, hookimpl


@hookimpl
def drupe_passes():
    return [PassSpec(name="Odd", target="odd.passes:Odd", summary="Odd.", accepts={"onnx"}, produces="onnx")]
"""
PASSES = """
from pydantic import Field

from drupe import IntRange, Model, Pass, PassConfig, searchable


class OddConfig(PassConfig):
    level: int = Field(1, description="Level.")


class Odd(Pass):
    '''Odd.'''

    Config = OddConfig

    def run(self, model, config, context):
        return model
"""
FIELD = 'level: int = Field(1, description="Level.")'


@pytest.mark.parametrize(
    ("over", "told"),
    [
        (IntRange(5, 1), "starts above its end"),
        (FloatRange(0, 1, log=True), "expected low above 0"),
        (IntRange(1, 8, step=0), "a step above 0"),
        (IntRange(1, 8, log=True, step=2), "one of the two"),
        (IntRange("1", "5"), "holds '1'"),  # type: ignore[arg-type]
        (IntRange(1, 2.5), "holds 2.5"),  # type: ignore[arg-type]
        (Choice(), "Choice() lists nothing"),
        (Ordered(), "Ordered() lists nothing"),
        ([1, 2], "the range is [1, 2]; expected IntRange, FloatRange, Choice or Ordered"),
    ],
)
def test_a_range_that_holds_nothing_is_refused_where_it_is_declared(over: Any, told: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        searchable(1, over)
    assert told in str(raised.value)


def say(folder: Path, monkeypatch: pytest.MonkeyPatch, plugin: str, passes: str, module: str) -> tuple[str, str]:
    """Return what `validate` of a workflow with the pass says, and what `plugins check` says; neither succeeds."""
    files = {"odd/__init__.py": "", "odd/plugin.py": plugin, "odd/passes.py": passes}
    site = install_plugin(folder / "site", "odd-plugin", files, plugins={"odd": module}, version="3.1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    workflow = {"input_model": {"type": "ONNXModel", "model_path": "m.onnx"}, "passes": {"odd": {"type": "Odd"}}}
    (folder / "m.onnx").write_bytes(b"")
    (folder / "w.json").write_text(json.dumps(workflow))
    validated = drupe("validate", folder / "w.json", folder=folder)
    checked = drupe("plugins", "check", "--quick", "odd-plugin", folder=folder)
    assert (validated.returncode, checked.returncode) == (2, 1), validated.stdout + validated.stderr + checked.stdout
    assert "unexpected" not in validated.stderr and "Traceback" not in validated.stdout + validated.stderr
    return validated.stdout + validated.stderr, checked.stdout


@pytest.mark.parametrize(
    ("plugin", "passes", "module", "told", "found"),
    [
        (
            "drupe_passes = []",
            PASSES,
            "odd.plugin",
            "odd-plugin 3.1) is broken: drupe_passes is a list; expected a function, marked with @hookimpl",
            "drupe_passes is a list",
        ),
        (
            f"{PLUGIN}\nthing = object()",
            PASSES,
            "odd.plugin:thing",
            "no pass is named 'Odd'",
            "odd.plugin:thing has no function that is marked with @hookimpl",
        ),
        (
            PLUGIN,
            PASSES.replace("(PassConfig)", ""),
            "odd.plugin",
            "the target odd.passes:Odd has a Config that is no config; derive it from drupe.PassConfig",
            "has a Config that is no config",
        ),
        (
            PLUGIN,
            PASSES.replace(FIELD, 'level: object = Field(print, description="Level.")'),
            "odd.plugin",
            "a parameter of Odd of plugin odd (odd-plugin 3.1) can't be written as JSON",
            "the config survives json",
        ),
        (
            PLUGIN,
            PASSES.replace(FIELD, 'level: int = Field(9, le=5, description="Level.")'),
            "odd.plugin",
            "9; expected a number at most 5",
            "these defaults are refused by their own fields: level: Input should be less than or equal to 5",
        ),
        (
            PLUGIN,
            PASSES.replace(FIELD, 'level: int = searchable(1, IntRange(5, 1), doc="Level.")'),
            "odd.plugin",
            "Odd of plugin odd (odd-plugin 3.1) can't be loaded: importing odd.passes raised ValueError: searchable: "
            "IntRange(low=5, high=1, log=False, step=1) starts above its end",
            "starts above its end",
        ),
    ],
    ids=[
        "hook is no function",
        "entry point to an object",
        "no config",
        "no JSON",
        "default refused",
        "range reversed",
    ],
)
def test_what_is_wrong_is_told(
    plugin: str, passes: str, module: str, told: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated, checked = say(tmp_path, monkeypatch, plugin, passes, module)
    assert told in " ".join(validated.split())
    failures = [line for line in checked.splitlines() if line.startswith("FAIL")]
    assert found in failures[0]
    assert len([line for line in failures if found in line]) == 1

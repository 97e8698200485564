"""What a plugin's author gets wrong is told in one clear message, where it is used and by `drupe plugins check`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

from drupe import Choice, FloatRange, IntRange, Ordered, PassConfig, PassSpec, searchable
from drupe.core.errors import PluginError
from drupe.core.registry import Plugin, Registry
from drupe.testing import install_plugin
from tests.support.workflows import drupe, toy_document, write_workflow

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
    assert "shadows" not in validated.stderr and "pydantic" not in validated.stderr
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
        (
            PLUGIN,
            PASSES.replace(FIELD, 'model_config: str = Field("a", description="Level.")'),
            "odd.plugin",
            "the pass Odd of plugin odd (odd-plugin 3.1) is broken: OddConfig: a field can't be named 'model_config', "
            "which keeps a config's own settings; rename it, for example to model_config_",
            "a field can't be named 'model_config'",
        ),
    ],
    ids=[
        "hook is no function",
        "entry point to an object",
        "no config",
        "no JSON",
        "default refused",
        "range reversed",
        "name taken",
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


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("model_config: str", "OddConfig: a field can't be named 'model_config', which keeps a config's own settings"),
        (
            "copy: bool = False",
            "OddConfig: a field can't be named 'copy', which is a method of every config; rename it",
        ),
        ("model_dump: int", "OddConfig: a field can't be named 'model_dump', which is a method of every config"),
        ("level = Field(1)", "OddConfig: Field 'level' requires a type annotation"),
        (
            "level: int = searchable(9, IntRange(1, 5))",
            "OddConfig: the default 9 of the field 'level' lies outside its own search range IntRange(low=1, high=5",
        ),
    ],
)
def test_what_is_wrong_with_a_config_is_told_with_plugin_pass_and_field(
    field: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    name = f"odd_{abs(hash(field))}"
    (tmp_path / f"{name}.py").write_text(PASSES.replace(FIELD, field))
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    spec = PassSpec(name="Odd", target=f"{name}:Odd")
    registry.add("drupe_passes", [spec], Plugin("odd", "odd.plugin", "odd-plugin", "3.1"))
    with pytest.raises(PluginError) as raised:
        registry.resolve(registry.get("drupe_passes", "Odd"))
    said = f"the pass Odd of plugin odd (odd-plugin 3.1) is broken: {told}"
    assert str(raised.value).startswith(said)
    assert not recwarn.list


@pytest.mark.parametrize("module", ["odd.plugin", "odd.passes"])
def test_a_broken_config_never_hurts_what_does_not_use_it(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the class lies beside the plugin's module or in it."""
    broken = PASSES.replace(FIELD, "copy: bool = False")
    files = {"odd/__init__.py": "", "odd/plugin.py": PLUGIN, "odd/passes.py": broken + PLUGIN}
    site = install_plugin(tmp_path / "site", "odd-plugin", files, plugins={"odd": module}, version="3.1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    done = drupe("run", write_workflow(tmp_path, toy_document(tmp_path)), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "copy" not in done.stdout + done.stderr
    listed = drupe("passes", folder=tmp_path)
    assert (listed.returncode, "Append" in listed.stdout) == (0, True), listed.stderr
    if module == "odd.passes":
        shown = drupe("plugins", folder=tmp_path).stdout
        assert "broken" in shown
        assert "OddConfig: a field can't be named 'copy'" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("default", "over"),
    [
        (None, IntRange(2, 8)),
        ("auto", IntRange(2, 8)),
        ("auto", Ordered(32, 64)),
        (3, FloatRange(1, 4)),
        (0.3, FloatRange(0.0, 1.0, step=0.2)),
        (True, Choice(True, False)),
    ],
)
def test_a_default_in_its_range_or_of_another_kind_is_fine(default: Any, over: Any) -> None:
    class Config(PassConfig):
        level: Any = searchable(default, over)

    assert Config().level == default


@pytest.mark.parametrize(
    ("default", "over"),
    [
        (1, IntRange(2, 8)),
        (9.5, FloatRange(1, 4)),
        (16, Ordered(32, 64)),
        ("c", Choice("a", "b")),
        (False, Choice(True)),
    ],
)
def test_a_default_outside_its_own_range_is_an_error_of_the_class(default: Any, over: Any) -> None:
    with pytest.raises(
        TypeError, match=f"the default {default!r} of the field 'level' lies outside its own search range"
    ):

        class Config(PassConfig):
            level: Any = searchable(default, over)


def test_class_variables_and_methods_may_have_any_name() -> None:
    class Config(PassConfig):
        schema: ClassVar[str] = "fine"
        model_name: str = "fine"

        def copy(self) -> str:  # type: ignore[override]
            return "fine"

    assert (Config.schema, Config().model_name, Config().copy()) == ("fine", "fine", "fine")

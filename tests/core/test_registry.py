"""Names and what is behind them: spelling, aliases, ambiguity, faults of plugins, observers, hooks that go away."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from drupe.core import hookspecs
from drupe.core.errors import PluginError
from drupe.core.hookspecs import deprecated, hookimpl
from drupe.core.plugin_index import GROUP, EntryPoint
from drupe.core.plugin_loading import PluginLoader
from drupe.core.registry import Plugin, Registry, get_registry
from drupe.core.specs import MetricSpec, PassSpec, StudySpec
from drupe.testing import install_plugin, isolated_registry, register

__all__ = ["isolated_registry"]

HERE = Plugin("mine", "mine.plugin", "mine-dist", "1.0")
OTHER = Plugin("other", "other.plugin", "other-dist", "2.0")


def spec(name: str, target: str = "drupe.core.passes:Pass", **fields: object) -> PassSpec:
    return PassSpec(name=name, target=target, **fields)  # type: ignore[arg-type]


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add("drupe_passes", [spec("LoRA", aliases=("Lora4",)), spec("Prune")], HERE)
    registry.add("drupe_metrics", [MetricSpec(name="LoRA", target="m:a")], HERE)
    return registry


@pytest.mark.parametrize("name", ["LoRA", "lora", "LORA", "lora4", "mine-dist:LoRA", "mine_dist:lora"])
def test_names_and_aliases_are_matched_without_case(registry: Registry, name: str) -> None:
    assert registry.get("drupe_passes", name).spec.name == "LoRA"


def test_an_unknown_name_is_none_or_an_error_with_the_nearest(registry: Registry) -> None:
    assert registry.find("drupe_passes", "lorra") is None
    with pytest.raises(PluginError, match="no pass named 'lorra'; did you mean 'LoRA'"):
        registry.get("drupe_passes", "lorra")
    with pytest.raises(PluginError, match="no pass named 'xyz'; installed: LoRA, Prune"):
        registry.get("drupe_passes", "xyz")
    assert registry.find("drupe_passes", "elsewhere:LoRA") is None


@pytest.mark.parametrize("fields", [{"name": "LoRA"}, {"name": "Fresh", "aliases": ("lora",)}])
def test_a_name_of_two_distributions_names_both(registry: Registry, fields: dict[str, object]) -> None:
    registry.add("drupe_passes", [spec(**fields)], OTHER)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"mine-dist 1\.0 and other-dist 2\.0.*'mine-dist:LoRA' or 'other-dist:"):
        registry.get("drupe_passes", "LoRA")
    assert registry.get("drupe_passes", "other-dist:lora").plugin is OTHER
    assert registry.get("drupe_passes", "Prune").plugin is HERE


def test_a_reference_is_as_short_as_it_may_be(registry: Registry) -> None:
    registry.add("drupe_passes", [spec("LoRA")], OTHER)
    references = [registry.reference(entry) for entry in registry.of("drupe_passes")]
    assert references == ["mine-dist:LoRA", "Prune", "other-dist:LoRA"]
    assert all(registry.reference(registry.get("drupe_passes", name)) == name for name in references)


def test_create_gives_the_spec_to_the_class(registry: Registry) -> None:
    made = registry.create("drupe_passes", "prune")
    assert made.spec.name == "Prune"


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("no_such_module_x:A", "the module no_such_module_x of 'no_such_module_x:A' does not exist"),
        ("drupe.core.passes:Pas", "has no 'Pas'; did you mean 'Pass'"),
        ("drupe.core.metrics:Metric", "is no subclass of drupe.Pass"),
        ("drupe.core.passes:annotations", "is no subclass of drupe.Pass"),
    ],
)
def test_a_bad_target_is_told_with_plugin_and_cause(registry: Registry, target: str, told: str) -> None:
    registry.add("drupe_passes", [spec("Bad", target)], OTHER)
    with pytest.raises(PluginError, match=r"Bad of plugin other \(other-dist 2\.0\)") as caught:
        registry.resolve(registry.get("drupe_passes", "bad"))
    assert told in str(caught.value)


@pytest.mark.parametrize(("requires", "unmet"), [(("pytest>=1",), ""), (("pytest>=999", "nope"), "pytest>=999, nope")])
def test_a_target_that_cannot_be_imported_tells_what_it_requires(
    registry: Registry, requires: tuple[str, ...], unmet: str
) -> None:
    registry.add("drupe_passes", [spec("Bad", "no_such_module_x:A", requires=requires)], OTHER)
    with pytest.raises(PluginError) as caught:
        registry.resolve(registry.get("drupe_passes", "bad"))
    assert (f"it requires {unmet}" in str(caught.value)) == bool(unmet)


# One plugin, loaded


def module(**functions: object) -> types.ModuleType:
    made = types.ModuleType("under_test.plugin")
    for name, function in functions.items():
        setattr(made, name, hookimpl(function) if callable(function) else function)
    return made


def passes(*specs: object) -> Callable[[], list[object]]:
    def drupe_passes() -> list[object]:
        return list(specs)

    return drupe_passes


def observer_with_wrong_argument(steps: object) -> None: ...


def generator_hook():  # type: ignore[no-untyped-def]
    yield spec("FromAGenerator")


def raising() -> list[object]:
    raise KeyError("nothing there")


def exiting() -> list[object]:
    sys.exit("bye")


def newer() -> list[object]:
    return [PassSpec(name="New", target="m:a", shape="round")]  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("functions", "told"),
    [
        ({"drupe_passes": passes(3)}, "returned 3 in its list; expected PassSpec"),
        ({"drupe_passes": passes(MetricSpec(name="m", target="m:a"))}, r"a MetricSpec \(m\) in its list"),
        ({"drupe_passes": lambda: None}, "returned None; expected a list of PassSpec"),
        ({"drupe_passes": lambda: {"a": 1}}, "expected a list of PassSpec"),
        ({"drupe_passes": raising}, "drupe_passes raised KeyError: 'nothing there'"),
        ({"drupe_passes": exiting}, "drupe_passes raised SystemExit: bye"),
        ({"drupe_passes": newer}, "unexpected keyword argument 'shape'; it may be written for a newer drupe"),
        ({"drupe_passes": passes(spec("A"), spec("a"))}, "declares the name 'a' twice"),
        ({"drupe_passes": passes(spec("A", api=0))}, "incompatible: A was written for plugin API 0"),
        ({"drupe_passes": passes(spec("A", resources={"x": object()}))}, "A can't be written as JSON"),
        ({"drupe_pass": passes()}, "there is no hook 'drupe_pass'; did you mean 'drupe_passes'"),
        ({"drupe_step_started": observer_with_wrong_argument}, "no argument 'steps'; it has step; did you mean 'step'"),
        ({"drupe_passes": lambda registry: []}, "no argument 'registry'; it takes no arguments"),
        ({"drupe_hookspecs": lambda: ["a"]}, "expected a mapping of hook name to spec type"),
        ({"drupe_hookspecs": lambda: {"my_things": dict}}, "opens 'my_things'"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_found_when_it_is_loaded(
    isolated_registry: Registry, functions: dict[str, object], told: str
) -> None:
    with pytest.raises(PluginError, match=told):
        register(isolated_registry, module(**functions))
    assert isolated_registry.entries == []


def test_a_hook_without_its_mark_is_told(isolated_registry: Registry) -> None:
    made = types.ModuleType("under_test.plugin")
    made.drupe_passes = passes(spec("A"))  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="drupe_passes is not marked as a hook; put @hookimpl above it"):
        register(isolated_registry, made)


def test_an_unknown_hook_may_be_optional(isolated_registry: Registry) -> None:
    made = module(drupe_passes=passes(spec("A")))
    made.drupe_of_tomorrow = hookimpl(optionalhook=True)(passes())  # type: ignore[attr-defined]
    register(isolated_registry, made)
    assert isolated_registry.get("drupe_passes", "a")


def test_a_generator_is_a_list_as_well(isolated_registry: Registry) -> None:
    register(isolated_registry, module(drupe_passes=generator_hook))
    assert get_registry().get("drupe_passes", "fromagenerator")


def test_a_plugin_opens_a_hook_for_others(isolated_registry: Registry) -> None:
    opener = module(drupe_hookspecs=lambda: {"mine_studies": StudySpec}, mine_studies=passes())
    register(isolated_registry, opener)
    point = EntryPoint(GROUP, "x", "under_test.plugin", "x", "1")
    loader = PluginLoader()
    loader.open({"mine_studies": StudySpec})
    loader.take(module(mine_studies=lambda: [StudySpec(name="s", target="m:a")]))
    record = loader.record(point)
    assert record["status"] == "active"
    assert record["hooks"] == {"mine_studies": [{"name": "s", "target": "m:a"}]}
    assert record["foreign"] == ["mine_studies"]


def test_a_hook_that_goes_away_warns_and_works_until_then() -> None:
    specs = types.ModuleType("specs")
    specs.drupe_passes = hookspecs.drupe_passes  # type: ignore[attr-defined]

    def drupe_transforms() -> list[PassSpec]:
        raise NotImplementedError

    specs.drupe_transforms = deprecated("0.2", "0.4", "use drupe_passes")(drupe_transforms)  # type: ignore[attr-defined]
    loader = PluginLoader(specs, {"drupe_transforms": "drupe_passes"})
    loader.take(module(drupe_transforms=passes(spec("Old"))))
    record = loader.record(EntryPoint(GROUP, "x", "under_test.plugin", "x", "1"))
    assert record["status"] == "active"
    assert record["hooks"]["drupe_passes"][0]["name"] == "Old"
    [warning] = record["warnings"]
    assert warning == ("drupe_transforms is deprecated since drupe 0.2 and will be removed in 0.4; use drupe_passes")


# Observers

OBSERVER = """
from drupe import hookimpl

seen = []

@hookimpl
def drupe_step_started(step):
    seen.append(step["name"])
    if step["name"] == "bad":
        raise SystemExit("observers can't end a run")

@hookimpl
def drupe_trial_finished():
    seen.append("trial")
"""


def test_observers_are_called_and_never_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DRUPE_HOME", str(tmp_path / "home"))
    sites = [
        install_plugin(tmp_path / "site", f"watch-{n}", {f"watch_{n}.py": OBSERVER}, plugins={n: f"watch_{n}"})
        for n in ("one", "two")
    ]
    monkeypatch.syspath_prepend(str(sites[0]))
    registry = Registry.discover()
    observing = {p.name: p.observes for p in registry.plugins if p.observes}
    assert observing == dict.fromkeys(("one", "two"), ("drupe_step_started", "drupe_trial_finished"))
    with caplog.at_level(logging.ERROR, "drupe.plugins"):
        registry.notify("drupe_step_started", step={"name": "bad"})
        registry.notify("drupe_step_started", step={"name": "good"})
        registry.notify("drupe_trial_finished", trial={"number": 1})
        registry.notify("drupe_step_finished", step={}, record=None, error=None)
    assert caplog.text.count("its observer drupe_step_started failed; the run goes on") == 2
    assert "watch-one 1.0" in caplog.text
    for name in ("watch_one", "watch_two"):
        assert sys.modules[name].seen == ["bad", "good", "trial"]
        monkeypatch.delitem(sys.modules, name)


def test_specs_refuse_what_cannot_be_meant() -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"accepts": "onnx"}, "accepts is 'onnx'; expected a collection of texts"),
        ({"aliases": [1]}, "aliases is .* expected a collection of texts"),
        ({"api": "1"}, "api is '1'; expected int"),
        ({"api": True}, "api is True; expected int"),
        ({"accelerator_matters": 1}, "expected bool"),
        ({"launcher": "mpirun"}, "launcher is 'mpirun'; expected None, 'accelerate', 'torchrun'"),
        ({"name": "a:b"}, "holds a space or a colon"),
        ({"name": ""}, "is empty"),
        ({"target": "module.attribute"}, "target must read 'module:attribute'"),
        ({"resources": [1]}, "expected Mapping"),
    ]
    for fields, told in wrong:
        with pytest.raises((TypeError, ValueError), match=told):
            PassSpec(**{"name": "A", "target": "m:a", **fields})  # type: ignore[arg-type]


def test_a_spec_survives_json() -> None:
    first = spec("A", accepts={"hf", "onnx"}, aliases=["b"], resources={"gpus": 1})
    assert PassSpec.from_json(first.to_json()) == first
    with pytest.raises(KeyError):
        PassSpec.from_json({**first.to_json(), "shape": "round"})

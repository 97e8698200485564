"""Every hook is documented by an example that runs, and every one is exercised by it."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from drupe.core import hookspecs
from drupe.core.registry import Registry
from drupe.core.specs import SPEC_TYPES
from drupe.testing import install_plugin

HOOKS = {n: f for n, f in vars(hookspecs).items() if hasattr(f, "drupe_spec")}
EVENTS: dict[str, dict[str, Any]] = {
    "drupe_step_started": {"step": {"key": "k", "kind": "pass", "name": "tune", "input": "d", "host": "here"}},
    "drupe_step_finished": {
        "step": {"key": "k", "kind": "pass", "name": "tune", "input": "d", "host": "here"},
        "record": {"seconds": 1.5},
        "error": None,
    },
    "drupe_trial_finished": {"trial": {"number": 3, "state": "complete"}},
}
"""What each observer is told, as the engine tells it."""
PRINTED = {
    "drupe_step_started": "starting tune\n",
    "drupe_step_finished": "tune took 1.5 s\n",
    "drupe_trial_finished": "3 complete\n",
}
numbers = itertools.count()


def example(hook: str) -> str:
    """The example in a hook's docstring."""
    blocks = re.findall(r"```python\n(.*?)```", inspect.cleandoc(HOOKS[hook].__doc__ or ""), re.DOTALL)
    assert len(blocks) == 1, f"{hook} has {len(blocks)} examples"
    return str(blocks[0])


@pytest.fixture
def registry_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install an example and discover it."""

    def discover(source: str) -> tuple[Registry, str]:
        name = f"example_hook_{next(numbers)}"
        site = install_plugin(tmp_path / "site", name.replace("_", "-"), {f"{name}.py": source}, plugins={name: name})
        monkeypatch.setenv("DRUPE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("DRUPE_PLUGINS_ALLOW", "example-hook-*")
        monkeypatch.syspath_prepend(str(site))
        return Registry.discover(), name

    return discover


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_what_it_is_and_has_typed_arguments(hook: str) -> None:
    function = HOOKS[hook]
    assert hook.startswith("drupe_")
    doc = inspect.getdoc(function) or ""
    assert re.match(r"(Contribute|Observe|Open) .+[.:]", doc)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for name, parameter in signature.parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty
        assert re.search(rf"\b{name}: ", doc), f"the docstring of {hook} does not say what {name} is"


@pytest.mark.parametrize("hook", SPEC_TYPES)
def test_the_example_of_a_contributing_hook_contributes(hook: str, registry_of: Any) -> None:
    registry, name = registry_of(example(hook))
    [plugin] = [p for p in registry.plugins if p.name == name]
    assert (plugin.status, plugin.error, plugin.warnings) == ("active", "", ())
    [entry] = [e for e in registry.of(hook) if e.plugin == plugin]
    assert type(entry.spec) is SPEC_TYPES[hook]
    assert registry.get(hook, entry.spec.name) == entry


@pytest.mark.parametrize("hook", EVENTS)
def test_the_example_of_an_observer_observes(hook: str, registry_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    registry, name = registry_of(example(hook))
    registry.notify(hook, **EVENTS[hook])
    assert capsys.readouterr().out == PRINTED[hook]
    assert name in sys.modules


def test_the_example_of_an_opened_hook_lets_others_contribute(registry_of: Any) -> None:
    source = example("drupe_hookspecs")
    source += (
        "\n\n@hookimpl\ndef examplelib_tokenizers():\n"
        '    return [TokenizerSpec(name="bpe", target="m:a", languages=("de", "en"))]\n'
    )
    registry, _ = registry_of(source)
    entry = registry.get("examplelib_tokenizers", "bpe")
    assert entry.spec.languages == ("de", "en")
    again = Registry.discover()
    assert again.get("examplelib_tokenizers", "bpe").spec == entry.spec


def test_every_hook_is_exercised_here() -> None:
    assert set(HOOKS) == {*SPEC_TYPES, *EVENTS, "drupe_hookspecs"}


def test_the_engine_tells_observers_what_is_documented() -> None:
    """The arguments with which core notifies are those of the hookspecs."""
    calls: dict[str, set[str]] = {}
    for path in Path(hookspecs.__file__).parent.glob("*.py"):
        for hook, arguments in re.findall(r'notify\(\s*"(drupe_\w+)",\s*([^)]*)', path.read_text()):
            calls.setdefault(hook, set()).update(re.findall(r"(\w+)=", arguments))
    assert set(calls) == set(EVENTS)
    for hook, arguments in calls.items():
        assert arguments == set(inspect.signature(HOOKS[hook]).parameters)

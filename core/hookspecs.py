"""What a plugin can contribute and observe. Imports pluggy and nothing heavier.

A plugin module is named by an entry point in the group `drupe`. Contributing hooks return lists of specs and run once,
when the plugin is discovered; observers run while a workflow runs.

How a hook goes away: it is marked with `deprecated(since, until, instead)`, and where another took its place it stands
in `RENAMED_HOOKS`. Until the version named there, its implementations work as before and `drupe plugins` shows what to
do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    from drupe.core import specs

__all__ = ["ENTRY_POINT_GROUP", "RENAMED_HOOKS", "deprecated", "hookimpl", "hookspec"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

ENTRY_POINT_GROUP = "drupe"

hookspec = pluggy.HookspecMarker("drupe")
hookimpl = pluggy.HookimplMarker("drupe")

RENAMED_HOOKS: Mapping[str, str] = {}
"""Deprecated hook → the hook that took its place; what the old one returns counts as returned by the new one."""


def deprecated(since: str, until: str, instead: str) -> Callable[[_Function], _Function]:
    """Return a marker for the spec of a hook that goes away: implementing it warns, and nothing else changes.

    since, until: the versions in which it was deprecated and will be removed. instead: what to do.
    """

    def mark(function: _Function) -> _Function:
        text = f"{function.__name__} is deprecated since drupe {since} and will be removed in {until}; {instead}"
        return hookspec(function, warn_on_impl=DeprecationWarning(text))

    return mark


@hookspec
def drupe_passes() -> Sequence[specs.PassSpec]:
    """Contribute optimization passes.

    ```python
    from drupe import PassSpec, hookimpl

    @hookimpl
    def drupe_passes():
        return [
            PassSpec(name="PruneHeads", target="examplelib.prune:PruneHeads", accepts={"onnx"}, produces="onnx"),
        ]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_data_containers() -> Sequence[specs.DataSpec]:
    """Contribute data containers.

    ```python
    from drupe import DataSpec, hookimpl

    @hookimpl
    def drupe_data_containers():
        return [DataSpec(name="ParquetLake", target="examplelib.lake:ParquetLake")]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_hosts() -> Sequence[specs.HostSpec]:
    """Contribute hosts.

    ```python
    from drupe import HostSpec, hookimpl

    @hookimpl
    def drupe_hosts():
        return [HostSpec(name="Board", target="examplelib.board:BoardHost")]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_accelerators() -> Sequence[specs.AcceleratorSpec]:
    """Contribute accelerators: devices and the execution providers that drive them.

    ```python
    from drupe import AcceleratorSpec, hookimpl

    @hookimpl
    def drupe_accelerators():
        return [AcceleratorSpec(name="npu_x", target="examplelib.npu:NpuX", providers=("NpuXExecutionProvider",))]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_runtimes() -> Sequence[specs.RuntimeSpec]:
    """Contribute runtimes: what opens a model kind on an accelerator.

    ```python
    from drupe import RuntimeSpec, hookimpl

    @hookimpl
    def drupe_runtimes():
        return [
            RuntimeSpec(
                name="npu_x",
                target="examplelib.runtime:NpuXRuntime",
                kinds={"program"},
                accelerators={"npu_x"},
                capabilities={"forward"},
            ),
        ]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_metrics() -> Sequence[specs.MetricSpec]:
    """Contribute metrics.

    ```python
    from drupe import MetricSpec, hookimpl

    @hookimpl
    def drupe_metrics():
        return [MetricSpec(name="energy", target="examplelib.energy:Energy", needs="forward", timed=True)]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_model_kinds() -> Sequence[specs.ModelKindSpec]:
    """Contribute model kinds.

    ```python
    from drupe import ModelKindSpec, hookimpl

    @hookimpl
    def drupe_model_kinds():
        return [ModelKindSpec(name="program", target="examplelib.model:Program", aliases=("ProgramModel",))]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_model_sources() -> Sequence[specs.ModelSourceSpec]:
    """Contribute model sources: where an input model is fetched from.

    ```python
    from drupe import ModelSourceSpec, hookimpl

    @hookimpl
    def drupe_model_sources():
        return [ModelSourceSpec(name="vault", target="examplelib.vault:VaultSource", schemes=("vault",))]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_studies() -> Sequence[specs.StudySpec]:
    """Contribute studies: what proposes points of a search space.

    ```python
    from drupe import StudySpec, hookimpl

    @hookimpl
    def drupe_studies():
        return [StudySpec(name="hill-climb", target="examplelib.climb:HillClimb")]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_commands() -> Sequence[specs.CommandSpec]:
    """Contribute sub-commands of `drupe`.

    ```python
    from drupe import CommandSpec, hookimpl

    @hookimpl
    def drupe_commands():
        return [CommandSpec(name="audit", target="examplelib.audit:audit", summary="Check a model against our rules.")]
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_hookspecs() -> Mapping[str, type[specs.Spec]]:
    """Open hooks of one's own, which other plugins contribute to: hook name → the spec type that it returns.

    ```python
    from dataclasses import dataclass

    from drupe import hookimpl
    from drupe.core.specs import Spec

    @dataclass(frozen=True, kw_only=True)
    class TokenizerSpec(Spec):
        languages: tuple[str, ...] = ()

    @hookimpl
    def drupe_hookspecs():
        return {"examplelib_tokenizers": TokenizerSpec}
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_step_started(step: Mapping[str, Any]) -> None:
    """Observe that a step starts. step: key, kind ("import", "pass", "measure"), name, input, host.

    ```python
    from drupe import hookimpl

    @hookimpl
    def drupe_step_started(step):
        print("starting", step["name"])
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_step_finished(step: Mapping[str, Any], record: Mapping[str, Any] | None, error: str | None) -> None:
    """Observe that a step ended.

    step: as `drupe_step_started` gets it. record: what came of it (seconds, peak_memory, versions, report), None on
    failure. error: why it failed, or None.

    ```python
    from drupe import hookimpl

    @hookimpl
    def drupe_step_finished(step, record, error):
        print(step["name"], "failed" if error else f"took {record['seconds']:.1f} s")
    ```
    """
    raise NotImplementedError


@hookspec
def drupe_trial_finished(trial: Mapping[str, Any]) -> None:
    """Observe that a trial ended. trial: number, target, point, state, measurements, error.

    ```python
    from drupe import hookimpl

    @hookimpl
    def drupe_trial_finished(trial):
        print(trial["number"], trial["state"])
    ```
    """
    raise NotImplementedError

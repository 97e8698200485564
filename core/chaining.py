"""What a user can do about a chain whose next pass does not take the kind of model that it would be given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, PluginError
from drupe.core.model import ModelInfo
from drupe.core.passes import Pass
from drupe.core.specs import PassSpec

if TYPE_CHECKING:
    from drupe.core.registry import Registry

__all__ = ["Planned", "way_out"]

Planned = tuple[str, Pass, Any, ModelInfo]
"""A step's name in the workflow, its pass, its config, and what is known of the model that it is given."""
_MOST_NAMES = 8


def way_out(registry: Registry, before: Sequence[Planned], step: Planned, accelerator: Accelerator) -> str:
    """Return what helps where a pass does not take the kind that it is given; "" where the kind is not what is wrong.

    before: the steps that lead there. A pass is sent to an earlier place only where it and what follows fit there.
    """
    _, subject, _, info = step
    accepts = subject.spec.accepts
    if not accepts or info.kind in accepts:
        return ""
    ways = []
    if (name := _earlier(before, step, accelerator)) is not None:
        ways.append(f"put it before {name}")
    specs = [cast(PassSpec, entry.spec) for entry in registry.of("drupe_passes")]
    takers = [one for one in specs if info.kind in one.accepts and _fits(one, accelerator)]
    if makers := [one for one in takers if one.produces in accepts]:
        kinds = " or ".join(sorted({str(one.produces) for one in makers}))
        ways.append(f"put a pass before it that makes {kinds} of {info.kind}: {_names(makers)}")
    if ways:
        return ", or ".join(ways)
    nothing = f"no installed pass makes {' or '.join(sorted(accepts))} of {info.kind}"
    if not takers:
        return f"{nothing}, nor goes on from {info.kind} models at all"
    return f"{nothing}; what goes on from {info.kind} models: {_names(takers)}"


def _earlier(before: Sequence[Planned], step: Planned, accelerator: Accelerator) -> str | None:
    """Return the name of the step that the pass can be put before, the latest there is."""
    for index in range(len(before) - 1, -1, -1):
        info = before[index][3]
        try:
            for _, subject, config, _ in (step, *before[index:]):
                info = subject.plan(info, config, accelerator)
        except (ConfigError, PluginError):
            continue
        return before[index][0]
    return None


def _fits(spec: PassSpec, accelerator: Accelerator) -> bool:
    return not spec.accelerators or accelerator.device in spec.accelerators


def _names(specs: Iterable[PassSpec]) -> str:
    names = sorted({spec.name for spec in specs}, key=str.lower)
    more = len(names) - _MOST_NAMES
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown} and {more} more, which `drupe passes` lists" if more > 0 else shown

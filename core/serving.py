"""Which runtime serves a model kind on an accelerator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.registry import Registered, Registry
from drupe.core.specs import RuntimeSpec

__all__ = ["find_runtime", "serving"]


def serving(
    registry: Registry, kind: str, accelerator: Accelerator, name: str | None, options: Mapping[str, Any]
) -> tuple[Registered, Mapping[str, Any]]:
    """Return the runtime that measures a model on a system, and its options.

    name, options: the system's. A runtime that is named holds, with its options, for models of the kinds that it
    serves; those of other kinds, which goals compare with, are opened by the only one that matches. Raises ConfigError.
    """
    if name is not None and kind not in cast(RuntimeSpec, registry.get("drupe_runtimes", name).spec).kinds:
        return find_runtime(registry, kind, accelerator), {}
    return find_runtime(registry, kind, accelerator, name), options


def find_runtime(registry: Registry, kind: str, accelerator: Accelerator, name: str | None = None) -> Registered:
    """Return the runtime for a kind on an accelerator: the named one, or the only one that matches.

    Raises ConfigError when none matches (saying what would), or when several do and none is named.
    """
    if name is not None:
        entry = registry.get("drupe_runtimes", name)
        if not _serves(cast(RuntimeSpec, entry.spec), kind, accelerator):
            raise ConfigError(f"the runtime {name!r} does not serve {kind} models on {_device(accelerator)}")
        return entry
    entries = registry.of("drupe_runtimes")
    specs = {e: cast(RuntimeSpec, e.spec) for e in entries}
    matching = [e for e, spec in specs.items() if _serves(spec, kind, accelerator) and not spec.only_named]
    if not matching:
        serving = [e.spec.name for e in entries if kind in cast(RuntimeSpec, e.spec).kinds]
        hint = f"; {', '.join(serving)} serves {kind} models elsewhere" if serving else ""
        raise ConfigError(f"no installed runtime serves {kind} models on {_device(accelerator)}{hint}")
    if len(matching) > 1:
        names = ", ".join(sorted(e.spec.name for e in matching))
        raise ConfigError(
            f"several runtimes serve {kind} models on {_device(accelerator)}: {names}; "
            "name one as `runtime` in the target's system"
        )
    return matching[0]


def _serves(spec: RuntimeSpec, kind: str, accelerator: Accelerator) -> bool:
    provider = accelerator.execution_provider
    return (
        kind in spec.kinds
        and (not spec.accelerators or accelerator.device in spec.accelerators)
        and (not spec.providers or provider is None or provider in spec.providers)
    )


def _device(accelerator: Accelerator) -> str:
    provider = accelerator.execution_provider
    return f"{accelerator.device} ({provider})" if provider else accelerator.device

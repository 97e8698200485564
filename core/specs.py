"""What a plugin declares: frozen specs, light to build, written to the index on disk and read back without the plugin.

A spec names its subject, says where its class lives (`target`, "module:attribute", imported on first use) and what it
accepts. Nothing here imports more than the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

__all__ = [
    "API_VERSION",
    "SPEC_TYPES",
    "AcceleratorSpec",
    "CommandSpec",
    "DataSpec",
    "HostSpec",
    "MetricSpec",
    "ModelKindSpec",
    "ModelSourceSpec",
    "PassSpec",
    "RuntimeSpec",
    "Spec",
    "StudySpec",
]

API_VERSION = 1
"""The version of the plugin contract. A spec that asks for a newer one marks its plugin as incompatible."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What all specs share.

    name: how workflows call it, matched without case. target: "module:attribute". aliases: other names for the same
    thing (Olive's type names, older spellings). requires: requirement strings (PEP 508) that must be met where it runs.
    api: the contract version that the plugin was written for.
    """

    name: str
    target: str
    summary: str = ""
    aliases: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    api: int = API_VERSION

    def __post_init__(self) -> None:
        for spec_field in fields(self):
            value = getattr(self, spec_field.name)
            if isinstance(value, (set, list)) or (isinstance(value, frozenset) and spec_field.name == "aliases"):
                # Plugins write sets and lists; frozen specs keep them hashable, and tuples keep their order.
                frozen: Any = frozenset(value) if isinstance(value, set) else tuple(value)
                object.__setattr__(self, spec_field.name, frozen)
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"{type(self).__name__}: name must be a non-empty string, not {self.name!r}")
        if not isinstance(self.target, str) or self.target.count(":") != 1:
            raise TypeError(
                f"{type(self).__name__} {self.name!r}: target must read 'module:attribute', not {self.target!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON data; sets become sorted lists."""
        return {
            key: sorted(value) if isinstance(value, (set, frozenset)) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build the spec from what `to_json` gave; unknown keys (a newer writer's) are an error."""
        types = {f.name: str(f.type) for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            kind = types[key]
            values[key] = (
                frozenset(value)
                if kind.startswith("frozenset")
                else tuple(value)
                if kind.startswith("tuple")
                else value
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class PassSpec(Spec):
    """An optimization pass.

    accepts: model kinds it takes. produces: the kind it makes (None: the kind it was given). accelerators: devices that
    its output is for (empty: any). providers: execution providers (empty: any). precisions: what its output may have.
    key_packages: distributions whose version can change the result. accelerator_matters: the accelerator is part of the
    step key. resources: defaults for cpus, gpus, memory. launcher: None, "accelerate" or "torchrun".
    """

    accepts: frozenset[str] = frozenset()
    produces: str | None = None
    accelerators: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset()
    precisions: frozenset[str] = frozenset()
    key_packages: tuple[str, ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict, hash=False)
    launcher: str | None = None
    accelerator_matters: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSpec(Spec):
    """A data container."""

    key_packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostSpec(Spec):
    """A host: a place where jobs run."""


@dataclass(frozen=True, kw_only=True)
class AcceleratorSpec(Spec):
    """A device that models are optimized for. providers: the execution providers that drive it, the default first."""

    providers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec(Spec):
    """A runtime: opens models of `kinds` on `accelerators` through `providers` (empty: any) with `capabilities`.

    capabilities is a subset of {"forward", "generate", "score"}.
    """

    kinds: frozenset[str] = frozenset()
    accelerators: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    key_packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """A metric. needs: "forward", "generate", "score" or None (it looks at the files). timed: taken alone."""

    needs: str | None = None
    timed: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelKindSpec(Spec):
    """A model kind and how an `input_model` of it is read. aliases hold Olive's type names."""

    key_packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelSourceSpec(Spec):
    """Where models come from. schemes: URL schemes it serves ("pypi", …); resource_types: `{"type": …}` references.

    The source that serves paths without a scheme declares the scheme "".
    """

    schemes: tuple[str, ...] = ()
    resource_types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudySpec(Spec):
    """A study: proposes points of a search space and picks among the results. priority: the highest one serves."""

    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class CommandSpec(Spec):
    """A sub-command of `drupe`; target is a click command."""


SPEC_TYPES: dict[str, type[Spec]] = {
    "drupe_passes": PassSpec,
    "drupe_data_containers": DataSpec,
    "drupe_hosts": HostSpec,
    "drupe_accelerators": AcceleratorSpec,
    "drupe_runtimes": RuntimeSpec,
    "drupe_metrics": MetricSpec,
    "drupe_model_kinds": ModelKindSpec,
    "drupe_model_sources": ModelSourceSpec,
    "drupe_studies": StudySpec,
    "drupe_commands": CommandSpec,
}
"""Hook name → the spec type that it returns."""

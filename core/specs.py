"""What a plugin declares: frozen specs, light to build, written to the index on disk and read back without the plugin.

A spec names its subject, says where its class lives (`target`, "module:attribute", imported on first use) and what it
accepts. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

__all__ = [
    "API_VERSION",
    "CAPABILITIES",
    "OLDEST_API_VERSION",
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
OLDEST_API_VERSION = 1
"""The oldest version of the contract that still works."""
CAPABILITIES = ("forward", "generate", "score")
"""What a session can do, and what a metric can need."""

_NAME = re.compile(r"[^\s:]+")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


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

    _choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Field → the values that it, or each of its items, may have."""

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for what can't be meant."""
        for name, kind in _kinds(type(self)).items():
            value = _checked(f"{type(self).__name__} {self.name!r}: {name}", kind, getattr(self, name))
            object.__setattr__(self, name, value)
            allowed = self._choices.get(name)
            for item in value if isinstance(value, (tuple, frozenset)) else (value,):
                if allowed is not None and item not in allowed:
                    listed = ", ".join(repr(choice) for choice in allowed)
                    raise ValueError(f"{type(self).__name__} {self.name!r}: {name} is {item!r}; expected {listed}")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{type(self).__name__}: name {self.name!r} is empty or holds a space or a colon")
        if not _TARGET.fullmatch(self.target):
            raise ValueError(
                f"{type(self).__name__} {self.name!r}: target must read 'module:attribute', not {self.target!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON data; sets become sorted lists."""
        return {
            key: sorted(value) if isinstance(value, (set, frozenset)) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build the spec from what `to_json` gave; unknown keys (a newer writer's) are an error.

        Absent keys have their defaults. Values are not checked again: they were when the data was written.
        """
        kinds = _kinds(cls)
        values = dict(_defaults(cls))
        for key, value in data.items():
            kind = kinds[key]
            values[key] = (
                frozenset(value)
                if kind.startswith("frozenset")
                else tuple(value)
                if kind.startswith("tuple")
                else value
            )
        spec = object.__new__(cls)
        spec.__dict__.update(values)
        return spec


_KINDS: dict[type[Spec], Mapping[str, str]] = {}
_DEFAULTS: dict[type[Spec], Mapping[str, Any]] = {}


def _kinds(cls: type[Spec]) -> Mapping[str, str]:
    """Field → its annotation as written."""
    if cls not in _KINDS:
        _KINDS[cls] = {f.name: str(f.type) for f in fields(cls)}
    return _KINDS[cls]


def _defaults(cls: type[Spec]) -> Mapping[str, Any]:
    if cls not in _DEFAULTS:
        example = cls(name="name", target="module:attribute")
        _DEFAULTS[cls] = {f.name: getattr(example, f.name) for f in fields(cls)}
    return _DEFAULTS[cls]


def _checked(where: str, kind: str, value: Any) -> Any:
    """Return a field's value in its frozen form. Raises TypeError where it is not of its kind."""
    if kind in ("tuple[str, ...]", "frozenset[str]"):
        # A text is a collection of its letters to Python, and never what was meant.
        if not isinstance(value, (tuple, list, set, frozenset)) or not all(isinstance(item, str) for item in value):
            shape = "('a', 'b')" if kind.startswith("tuple") else "{'a', 'b'}"
            raise TypeError(f"{where} is {value!r}; expected a collection of texts like {shape}")
        return frozenset(value) if kind.startswith("frozenset") else tuple(value)
    expected = _PLAIN.get(kind)
    if expected and (not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)):
        raise TypeError(f"{where} is {value!r}; expected {kind}")
    return value


_PLAIN: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "bool": (bool,),
    "Mapping[str, Any]": (Mapping,),
}


@dataclass(frozen=True, kw_only=True)
class PassSpec(Spec):
    """An optimization pass.

    accepts: model kinds it takes. produces: the kind it makes (None: the kind it was given). accelerators: devices that
    its output is for (empty: any). providers: execution providers (empty: any). precisions: what its output may have.
    key_packages: distributions whose version can change the result. accelerator_matters: the accelerator is part of the
    step key. resources: defaults for cpus, gpus, memory. launcher: None, "accelerate" or "torchrun".
    launched_from: with fewer processes than this the pass runs without its launcher. deterministic: equal work gives
    equal files; False where the tool behind the pass can't do that: two runs without a shared store then differ.
    own_environment: what it requires can't be where the other passes' libraries are (another version of one of them): a
    run that lacks it is told how to give the pass a host with an environment made of `requires`.
    on_target: the pass runs on the target's system, and not on the workflow's host, unless it is given a host itself:
    what it works with (a device's compiler) is there.
    """

    accepts: frozenset[str] = frozenset()
    produces: str | None = None
    accelerators: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset()
    precisions: frozenset[str] = frozenset()
    key_packages: tuple[str, ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict, hash=False)
    launcher: str | None = None
    launched_from: int = 1
    accelerator_matters: bool = False
    deterministic: bool = True
    own_environment: bool = False
    on_target: bool = False

    _choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"launcher": (None, "accelerate", "torchrun")}


@dataclass(frozen=True, kw_only=True)
class DataSpec(Spec):
    """A data container."""

    key_packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostSpec(Spec):
    """A host: a place where jobs run.

    environment_field: the field of its config that takes requirement strings, from which it makes a Python environment
    for its jobs; None where it makes none. runtime: the one that models are measured by on such a system, which then
    only measures: passes of a workflow that names it as their host run on this machine.
    """

    environment_field: str | None = None
    runtime: str | None = None


@dataclass(frozen=True, kw_only=True)
class AcceleratorSpec(Spec):
    """A device that models are optimized for. providers: the execution providers that drive it, the default first."""

    providers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec(Spec):
    """A runtime: opens models of `kinds` on `accelerators` through `providers` (empty: any) with `capabilities`.

    capabilities is a subset of {"forward", "generate", "score"}. only_named: it serves only where a system, or the host
    behind it, names it, and so stands beside others of its kinds.
    """

    only_named: bool = False
    kinds: frozenset[str] = frozenset()
    accelerators: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    key_packages: tuple[str, ...] = ()

    _choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"capabilities": CAPABILITIES}


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """A metric. needs: "forward", "generate", "score" or None (it looks at the files). timed: taken alone.

    key_packages: distributions whose versions decide what it measures; part of measurement keys.
    """

    needs: str | None = None
    timed: bool = False
    key_packages: tuple[str, ...] = ()

    _choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"needs": (None, *CAPABILITIES)}


@dataclass(frozen=True, kw_only=True)
class ModelKindSpec(Spec):
    """A model kind and how an `input_model` of it is read. aliases hold Olive's type names.

    hard_links: its libraries read files that have several hard links. Where they refuse them (onnx does for weights
    beside the graph), a step's inputs are copies.
    """

    key_packages: tuple[str, ...] = ()
    hard_links: bool = True


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

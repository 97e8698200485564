"""Typed configs: fields that carry type, default, search range and doc in one place.

A field made with `searchable` says over which range it is worth searching; it is searched only where the workflow marks
it. Fields that refer to something are `DataRef`, `FileRef` or `SecretRef`: step keys are built from what they refer to,
and a secret enters no key, log or manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo

from drupe.core.config_classes import ConfigClassError, own_fields, reserved_name

__all__ = [
    "Choice",
    "ConfigClassError",
    "DataRef",
    "FileRef",
    "FloatRange",
    "IntRange",
    "Ordered",
    "PassConfig",
    "PluginConfig",
    "Range",
    "Reference",
    "SecretRef",
    "inner_configs",
    "references",
    "search_range",
    "searchable",
    "tell",
    "tell_unused",
]


@dataclass(frozen=True)
class IntRange:
    """Integers from low to high, both included; log spacing or a step, not both."""

    low: int
    high: int
    log: bool = False
    step: int = 1


@dataclass(frozen=True)
class FloatRange:
    """Floats from low to high, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Choice:
    """Unordered values."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", tuple(values))


@dataclass(frozen=True)
class Ordered:
    """Ordered values (bits, ranks, block sizes): a sampler may treat them as numbers."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", tuple(values))


Range = IntRange | FloatRange | Choice | Ordered


@dataclass(frozen=True)
class Reference:
    """Marks a field's type as a reference: what = "data", "file" or "secret"."""

    what: str


DataRef = Annotated[str, Reference("data")]
"""The name of an entry of `data_configs`."""
FileRef = Annotated[str, Reference("file")]
"""A path to a file or folder, resolved against the workflow's folder; its content enters the step key."""
SecretRef = Annotated[str, Reference("secret")]
"""The name of an environment variable that holds a secret; neither name's value nor anything of it is written."""


class PluginConfig(BaseModel):
    """Base of every config: unknown fields are errors, values are frozen, defaults are validated."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        validate_default=True,
        use_enum_values=True,
        # Schemas are built when a config is first checked: most of a plugin's configs are not, in one run.
        defer_build=True,
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raises ConfigClassError for a field by the name of a method: before pydantic warns of it, and it is lost."""
        super().__init_subclass__(**kwargs)
        for name in own_fields(cls):
            if hasattr(PluginConfig, name):
                raise ConfigClassError(reserved_name(cls.__qualname__, name))

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Raises ConfigClassError for a default outside of the field's own search range."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            over = search_range(cls, name)
            if over is not None and outside(field.default, over):
                raise ConfigClassError(
                    f"{cls.__qualname__}: the default {field.default!r} of the field {name!r} lies outside its own "
                    f"search range {over}; take it into the range, or another default (None, where it means not set)"
                )


class PassConfig(PluginConfig):
    """Base of pass configs."""


def searchable(
    default: Any, over: Range, *, doc: str = "", when: Mapping[str, Sequence[Any]] | None = None, **field: Any
) -> Any:
    """Declare a config field with its default, the range it is worth searching over, and its doc.

    when: {"other_field": [values]} — the field matters only where the other field has one of the values.
    field: further arguments for pydantic's Field (ge, le, alias, …). Raises TypeError or ValueError for a range that
    holds nothing, and for what is no range. A default outside the range is an error of the class that has the field,
    unless it is None (not set) or a word beside numbers ("auto").
    """
    _check_range(over)
    return Field(default, description=doc, json_schema_extra={"drupe_search": _range_json(over, when)}, **field)


def tell(info: ValidationInfo, *notices: str) -> None:
    """Have what a validator did told to the user: a value that has no effect, an older name that was upgraded.

    info: as pydantic hands it to validators. A notice names the field; where the values stand is put before it.
    """
    if isinstance(info.context, Mapping) and isinstance(info.context.get("notices"), list):
        info.context["notices"].extend(notices)


def tell_unused(info: ValidationInfo, config: BaseModel, names: Sequence[str], reason: str) -> None:
    """Have fields of a config told that the user set and that have no effect beside its other values."""
    given = [name for name in names if name in config.model_fields_set]
    tell(info, *(f"{name} has no effect: {reason}" for name in given))


def _check_range(over: Any) -> None:
    match over:
        case IntRange(low, high, log, step) | FloatRange(low, high, log, step):
            kinds = (int,) if isinstance(over, IntRange) else (int, float)
            for value in (low, high, *([] if step is None else [step])):
                if not isinstance(value, kinds) or isinstance(value, bool):
                    raise TypeError(f"searchable: {over} holds {value!r}; expected numbers of its kind")
            if low > high:
                raise ValueError(f"searchable: {over} starts above its end; expected low at most high")
            if log and low <= 0:
                raise ValueError(f"searchable: {over} is logarithmic; expected low above 0")
            if step is not None and step <= 0:
                raise ValueError(f"searchable: {over} has no step forward; expected a step above 0")
            if log and step not in (None, 1):
                raise ValueError(f"searchable: {over} has log spacing and a step; expected one of the two")
        case Choice(values) | Ordered(values):
            if not values:
                raise ValueError(
                    f"searchable: {type(over).__name__}() lists nothing; expected the values to choose from"
                )
        case _:
            raise TypeError(f"searchable: the range is {over!r}; expected IntRange, FloatRange, Choice or Ordered")


def outside(default: Any, over: Range) -> bool:
    """Whether a default is of the kind that a range holds, and not in it."""
    if default is None or (isinstance(default, bool) and isinstance(over, (IntRange, FloatRange))):
        return False
    match over:
        case IntRange(low, high) | FloatRange(low, high):
            return isinstance(default, (int, float)) and not low <= default <= high
        case Choice(values) | Ordered(values):
            kinds = {_kind(value) for value in values}
            return _kind(default) in kinds and not any(_kind(v) == _kind(default) and v == default for v in values)


def _kind(value: Any) -> type:
    """The kind of a listed value: whole numbers and others are one, true and false are none."""
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


def search_range(config: type[BaseModel], name: str) -> Range | None:
    """Return the search range that `config` declares for field `name`, or None."""
    extra = config.model_fields[name].json_schema_extra
    if not isinstance(extra, dict) or "drupe_search" not in extra:
        return None
    data: Any = extra["drupe_search"]
    match data["type"]:
        case "int":
            return IntRange(data["low"], data["high"], data["log"], data["step"])
        case "float":
            return FloatRange(data["low"], data["high"], data["log"], data["step"])
        case "ordered":
            return Ordered(*data["values"])
        case _:
            return Choice(*data["values"])


def references(config: type[BaseModel]) -> dict[str, str]:
    """Return {field name: "data" | "file" | "secret"} for the fields of `config` that refer to something.

    Optional references and lists of references count as well.
    """
    found: dict[str, str] = {}
    for name, info in config.model_fields.items():
        for mark in (*info.metadata, *_annotated_marks(info.annotation)):
            if isinstance(mark, Reference):
                found[name] = mark.what
    return found


def inner_configs(config: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return {field name: its Config class} for the fields of `config` that hold a config of their own."""
    found: dict[str, type[BaseModel]] = {}
    for name, info in config.model_fields.items():
        annotation: Any = info.annotation
        for kind in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found


def _annotated_marks(annotation: Any) -> list[Any]:
    marks = list(getattr(annotation, "__metadata__", ()))
    for inner in getattr(annotation, "__args__", ()):
        marks += _annotated_marks(inner)
    return marks


def _range_json(over: Range, when: Mapping[str, Sequence[Any]] | None) -> dict[str, Any]:
    data: dict[str, Any]
    match over:
        case IntRange():
            data = {"type": "int", "low": over.low, "high": over.high, "log": over.log, "step": over.step}
        case FloatRange():
            data = {"type": "float", "low": over.low, "high": over.high, "log": over.log, "step": over.step}
        case Choice():
            data = {"type": "choice", "values": list(over.values)}
        case Ordered():
            data = {"type": "ordered", "values": list(over.values)}
    if when:
        data["when"] = {key: list(values) for key, values in when.items()}
    return data

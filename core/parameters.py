"""The parameters of a Config class, as a person reads them: type, default, what they mean, how they are searched."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from drupe.core.config import Choice, FloatRange, IntRange, Range, Reference, search_range

__all__ = ["Parameter", "parameters"]


@dataclass(frozen=True)
class Parameter:
    """One parameter. name: dotted where it lies inside another. default: JSON data; `required` where there is none."""

    name: str
    type: str
    default: Any
    required: bool
    doc: str
    search: Range | None
    when: Mapping[str, Sequence[Any]]
    holds_others: bool = False

    @property
    def default_text(self) -> str:
        """How the default reads behind the type."""
        if self.required:
            return " (required)"
        # The defaults of a nested config stand with its own parameters.
        return "" if self.holds_others else f" = {_shown(self.default)}"

    @property
    def search_text(self) -> str:
        """How it can be searched, "" where it has no declared range."""
        if self.search is None:
            return ""
        text = f"search: {_range_text(self.search)}"
        if self.when:
            text += ", where " + " and ".join(
                f"{name} is {' or '.join(map(_shown, values))}" for name, values in self.when.items()
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        data: dict[str, Any] = {"name": self.name, "type": self.type, "required": self.required, "doc": self.doc}
        if not self.required:
            data["default"] = self.default
        if self.search is not None:
            data["search"] = _range_data(self.search) | ({"when": dict(self.when)} if self.when else {})
        return data


def parameters(config: type[BaseModel], prefix: str = "") -> list[Parameter]:
    """Return the parameters of a Config in order, those of nested configs behind the one that holds them."""
    found = []
    for name, info in config.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        marks: Any = extra.get("drupe_search", {})
        shown = info.alias or name
        nested = _nested(info.annotation)
        found.append(
            Parameter(
                prefix + shown,
                _type_text(info.annotation, info.metadata),
                _default(info),
                info.is_required(),
                " ".join((info.description or "").split()),
                search_range(config, name),
                marks.get("when", {}),
                nested is not None,
            )
        )
        if nested is not None:
            found += parameters(nested, f"{prefix}{shown}.")
    return found


def _default(info: Any) -> Any:
    value = info.get_default(call_default_factory=True) if not _factory_takes_data(info) else None
    if value is PydanticUndefined:
        return None
    return to_jsonable_python(value, fallback=str)


def _factory_takes_data(info: Any) -> bool:
    return info.default_factory is not None and bool(info.default_factory_takes_validated_data)


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return next(filter(None, map(_nested, typing.get_args(annotation))), None)
    return None


def _type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    limits = [text for mark in metadata for text in _limit_texts(mark)]
    reference = next((mark.what for mark in metadata if isinstance(mark, Reference)), None)
    text = _REFERENCES[reference] if reference else _plain_type(annotation)
    return f"{text} ({', '.join(limits)})" if limits else text


_REFERENCES = {"data": "name of a data config", "file": "path", "secret": "environment variable with a secret"}
_NAMES: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
    dict: "mapping",
    list: "list",
}


def _plain_type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_text(arguments[0], arguments[1:])
    if origin is typing.Literal:
        return " | ".join(map(_shown, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(_plain_type, arguments)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if origin is not None and arguments:
        return f"list of {_plain_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(_shown(member.value) for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limit_texts(mark: Any) -> list[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
    return [f"{sign} {getattr(mark, name)}" for name, sign in signs.items() if getattr(mark, name, None) is not None]


def _shown(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, default=str)


def _range_text(over: Range) -> str:
    if isinstance(over, (IntRange, FloatRange)):
        step = f", step {over.step}" if over.step not in (None, 1) else ""
        return f"{over.low} to {over.high}{', log' if over.log else ''}{step}"
    return (" | " if isinstance(over, Choice) else " < ").join(map(_shown, over.values))


def _range_data(over: Range) -> dict[str, Any]:
    if isinstance(over, (IntRange, FloatRange)):
        return {"low": over.low, "high": over.high, "log": over.log, "step": over.step}
    return {"values": list(over.values), "ordered": not isinstance(over, Choice)}

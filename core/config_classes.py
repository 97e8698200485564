"""What can be wrong with a Config class as it is written: told in the framework's words, when it is imported.

pydantic reserves some names, and lets others shadow its methods, so that a config fails when it is used.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

__all__ = ["ConfigClassError", "class_fault", "own_fields", "reserved_name"]

_CONFIG = "model_config"
"""What pydantic keeps a class's own settings in."""


class ConfigClassError(TypeError):
    """A Config class can't be what it says: a field has a name that is taken, or a default that does not fit."""


def reserved_name(config: str, field: str) -> str:
    """Say that a Config class, by its qualified name, has a field whose name is taken."""
    kept = "keeps a config's own settings" if field == _CONFIG else "is a method of every config"
    return f"{config}: a field can't be named {field!r}, which {kept}; rename it, for example to {field}_"


def own_fields(cls: type) -> Iterator[str]:
    """Yield the names of the fields that a class declares itself."""
    for name, annotation in _annotations(cls).items():
        text = annotation if isinstance(annotation, str) else repr(annotation)
        if not name.startswith("_") and "ClassVar" not in text.partition("[")[0]:
            yield name


def _annotations(cls: type) -> Mapping[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.STRING)
    return inspect.get_annotations(cls)


def class_fault(error: BaseException) -> str | None:
    """Say what is wrong where an error was raised by making a Config class; None where it was not.

    Errors of Drupe's own checks speak for themselves. pydantic stops at a field named model_config before any check of
    ours could see the class: which class it was at is read off the traceback.
    """
    if isinstance(error, ConfigClassError):
        return str(error)
    for values in _frames(error.__traceback__):
        namespace, name = values.get("namespace"), values.get("cls_name")
        if not isinstance(namespace, Mapping) or not isinstance(name, str) or not _ours(values.get("bases")):
            continue
        qualified = str(namespace.get("__qualname__", name))
        if _CONFIG in namespace.get("__annotations__", {}) or not isinstance(namespace.get(_CONFIG, {}), Mapping):
            return reserved_name(qualified, _CONFIG)
        said = str(getattr(error, "message", None) or error)
        return f"{qualified}: {said}"
    return None


def _ours(bases: Any) -> bool:
    """Whether a class with these bases is a Config; models of other libraries are their own affair."""
    if not isinstance(bases, tuple):
        return False
    return any(kind.__module__ == "drupe.core.config" for base in bases for kind in getattr(base, "__mro__", ()))


def _frames(traceback: TracebackType | None) -> Iterator[Mapping[str, Any]]:
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__", "").startswith("pydantic."):
            yield traceback.tb_frame.f_locals
        traceback = traceback.tb_next

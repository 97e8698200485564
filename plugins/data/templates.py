"""Fills templates such as "Phrase: {phrase}" from rows, and normalises text so that equal content gets an equal key."""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from drupe.core.errors import ConfigError

__all__ = ["Template", "content_key", "text_of"]

Row = Mapping[str, Any]


class Template:
    """A format string over a row's columns.

    {column} is replaced by the column's value, {column[key]} by what it holds at a key or position; {{ and }} are
    braces. A column's name may hold dots and spaces. Attributes and conversions are out of reach.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.where = where
        try:
            self._parts = [
                (literal, field, spec or "", conversion)
                for literal, field, spec, conversion in string.Formatter().parse(text)
            ]
        except ValueError as error:
            raise ConfigError(f"{where} {text!r}: {error}; write {{{{ and }}}} for braces") from error
        for _, field, _, conversion in self._parts:
            if field == "":
                raise ConfigError(f"{where} {text!r}: {{}} names no column; write {{column}}")
            if conversion:
                raise ConfigError(f"{where} {text!r}: !{conversion} is not read here; write {{{field}}}")

    @property
    def fields(self) -> list[str]:
        """The columns that the template names, in order, each once."""
        return list(dict.fromkeys(field.split("[", 1)[0] for _, field, _, _ in self._parts if field is not None))

    def missing(self, columns: Sequence[str]) -> list[str]:
        """Return the columns that are named but not there."""
        named = [field for _, field, _, _ in self._parts if field is not None and field not in columns]
        return [name for name in dict.fromkeys(field.split("[", 1)[0] for field in named) if name not in columns]

    def check(self, columns: Sequence[str]) -> None:
        """Raise ConfigError when the template names a column that is not there."""
        absent = self.missing(columns)
        if absent:
            raise ConfigError(
                f"{self.where} names the column{'s' if len(absent) > 1 else ''} {', '.join(map(repr, absent))}; "
                f"the data has: {', '.join(columns) or 'no columns'}"
            )

    def fill(self, row: Row) -> str | None:
        """Return the text for a row; None when a column that it names is empty (null)."""
        pieces: list[str] = []
        for literal, field, spec, _ in self._parts:
            pieces.append(literal)
            if field is None:
                continue
            value = self._value(row, field)
            if value is None:
                return None
            try:
                pieces.append(format(value, spec))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{self.where}: {{{field}:{spec}}} does not fit {value!r:.60}: {error}") from error
        return "".join(pieces)

    def _value(self, row: Row, field: str) -> Any:
        if field in row:
            return row[field]
        name, _, rest = field.partition("[")
        value = row.get(name)
        for key in rest.rstrip("]").split("][") if rest else ():
            if value is None:
                return None
            try:
                value = value[int(key)] if isinstance(value, (list, tuple)) else value[key]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise ConfigError(f"{self.where}: {{{field}}} is not in the row's {name} ({value!r:.60})") from error
        return value


def text_of(row: Row, columns: Sequence[str]) -> str | None:
    """Return the columns' values joined by a space; None when all are empty. Raises ConfigError for what is no text."""
    for name in columns:
        if isinstance(row.get(name), (list, Mapping)):
            raise ConfigError(
                f"text_cols: {name} holds {row[name]!r:.60}; expected a text; a text_template reaches into it, as in "
                f"{{{name}[0]}}"
            )
    values = [str(row[name]) for name in columns if row.get(name) is not None]
    return " ".join(values) if values else None


def content_key(text: str) -> str:
    """Return the sha256 of a text whose form, white space and case don't matter (NFKC, folded)."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode()).hexdigest()

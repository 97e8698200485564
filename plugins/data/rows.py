"""Reads rows from files: JSON, JSON lines, CSV, Parquet, Arrow and text.

A file that is malformed is told with its name and line.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.data.tables import table_rows
from drupe.plugins.data.text_files import COMPRESSED, decoded, is_compressed, text_of_file

__all__ = ["FORMATS", "Row", "columns_of", "first_columns", "format_of", "read_file"]

Row = Mapping[str, Any]

FORMATS: Mapping[str, str] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_PEEK = 1 << 20


def format_of(path: Path) -> str | None:
    """Return the format that a file's name tells, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    return FORMATS.get(suffixes[-1]) if suffixes else None


def read_file(path: Path, kind: str, *, field: str | None = None, delimiter: str | None = None) -> Sequence[Row]:
    """Return the rows of a file. kind: json, csv, parquet, arrow or text.

    field: where the rows are in a JSON file that holds one object. Values of csv columns are numbers where all of the
    column's are, and None where nothing stands among them. Raises ConfigError naming file and line.
    """
    try:
        if kind == "json":
            return _json_rows(path, text_of_file(path), field)
        if kind == "csv":
            return _csv_rows(path, text_of_file(path), delimiter)
        if kind == "text":
            # Not splitlines: a form feed or U+2028 ends no line of a file.
            lines = text_of_file(path).split("\n")
            return [{"text": line} for line in (lines[:-1] if lines[-1] == "" else lines)]
        if kind in ("parquet", "arrow"):
            return table_rows(path, kind)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    raise ConfigError(f"{path}: unknown format {kind!r}; expected {', '.join(sorted(set(FORMATS.values())))}")


def first_columns(path: Path, kind: str, *, field: str | None = None, delimiter: str | None = None) -> list[str] | None:
    """Return the columns of a JSON-lines, JSON or csv file's first rows; None where that takes reading a big file.

    Raises ConfigError when one of the first rows is malformed.
    """
    if kind not in ("json", "csv") or is_compressed(path):
        return None
    with path.open("rb") as handle:
        head = handle.read(_PEEK)
    whole = len(head) < _PEEK
    text = decoded(path, head, cut=not whole)
    if not whole:
        text = text[: text.rfind("\n") + 1]
    if kind == "csv":
        return columns_of(_csv_rows(path, text, delimiter, cut=not whole)) or None
    if field is None and _is_json(_first_line(text)) and _first_line(text).lstrip()[:1] == "{":
        lines = ((n, line) for n, line in enumerate(_lines(text), 1) if line.strip())
        return columns_of([_object(path, number, line) for number, line in lines])
    return columns_of(_json_rows(path, text, field)) or None if whole else None


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the columns that occur in the rows, in order of appearance."""
    told = getattr(rows, "column_names", None)
    if told is not None:
        return list(told)
    names: dict[str, None] = {}
    before: Any = None
    for row in rows:
        # Most rows have the keys of the one before.
        if row.keys() != before:
            before = row.keys()
            names.update(dict.fromkeys(row))
    return list(names)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json_rows(path: Path, text: str, field: str | None) -> list[Row]:
    start = text.lstrip()[:1]
    if field is not None or start == "[" or (start == "{" and not _is_json(_first_line(text))):
        return _rows_of_document(path, text, field)
    return [_object(path, number, line) for number, line in enumerate(_lines(text), 1) if line.strip()]


def _rows_of_document(path: Path, text: str, field: str | None) -> list[Row]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        # A file of lines whose first one is broken is better told by its line.
        place = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{path}, {place}: {error.msg}; expected JSON, one row a line or a list of rows") from error
    if field is not None:
        if not isinstance(data, dict) or field not in data:
            there = f"its keys are {', '.join(data)}" if isinstance(data, dict) else "it holds no object"
            raise ConfigError(f"{path} has no field {field!r}; {there}")
        data = data[field]
    if isinstance(data, dict):
        lists = [name for name, value in data.items() if isinstance(value, list)]
        if len(lists) == 1 and all(isinstance(row, dict) for row in data[lists[0]]):
            data = data[lists[0]]
        elif lists and len(lists) == len(data) and len({len(data[name]) for name in lists}) == 1:
            return [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    if not isinstance(data, list):
        raise ConfigError(f"{path} holds {type(data).__name__}; expected a list of rows; name its place as `field`")
    for number, row in enumerate(data):
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, row {number + 1}: {_shown(row)}; expected an object with a key per column")
    return data


def _first_line(text: str) -> str:
    return next((line for line in _lines(text) if line.strip()), "")


def _lines(text: str) -> Iterator[str]:
    # Not splitlines: JSON strings may hold U+2028 and the like, which end no line of a file.
    yield from text.split("\n")


def _object(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {number}, column {error.colno}: {error.msg}; expected one JSON object a line, "
            f"found {_shown(line)}"
        ) from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path}, line {number}: {_shown(line)}; expected a JSON object with a key per column")
    return row


def _shown(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 60 else text[:57] + "...") if isinstance(value, str) else text[:60]


def _csv_rows(path: Path, text: str, delimiter: str | None, *, cut: bool = False) -> list[Row]:
    """cut: the text ends anywhere, perhaps within quotes."""
    separator = delimiter or ("\t" if ".tsv" in path.name.lower() else ",")
    # The library's limit is 128 KiB a value, and texts may be longer.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    table: list[list[str]] = []
    header: list[str] | None = None
    try:
        header = next(reader, None)
        if not header:
            return []
        if len(set(header)) != len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise ConfigError(f"{path}, line 1: the column {twice!r} is there twice")
        for values in reader:
            if values and len(values) != len(header):
                raise ConfigError(
                    f"{path}, line {reader.line_num}: {len(values)} values; expected {len(header)} "
                    f"({', '.join(header)}); quote values that hold {separator!r}"
                )
            if values:
                table.append(values)
    except csv.Error as error:
        if not cut or str(error) != "unexpected end of data":
            raise ConfigError(f"{path}, line {reader.line_num}: {error}") from error
    assert header is not None
    columns = [_numbers([row[index] for row in table]) for index in range(len(header))]
    return [dict(zip(header, values, strict=True)) for values in zip(*columns, strict=True)]


def _numbers(values: list[str]) -> list[Any]:
    """Return a column as numbers where all its values are; empty ones become None."""
    whole = "".join(values)
    # What Python takes for numbers besides: 1_000, digits of other scripts.
    if "_" not in whole and whole.isascii():
        for kind in (int, float):
            try:
                found = [kind(value) if value.strip() else None for value in values]
            except ValueError:
                continue
            if kind is int or any(number is not None and math.isfinite(number) for number in found):
                return found
    # A column of "nan", "inf" and the like only is one of words.
    return list(values)

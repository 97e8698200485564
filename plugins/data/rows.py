"""Reads rows from files: JSON, JSON lines, CSV, Parquet, Arrow and text, local or behind a URL that fsspec opens.

A file that is malformed is told with its name and line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError

__all__ = ["FORMATS", "columns_of", "first_columns", "format_of", "read_file"]

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
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_PEEK = 1 << 20
_FIRST = 100


def format_of(path: Path) -> str | None:
    """Return the format that a file's name tells, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSED]
    return FORMATS.get(suffixes[-1]) if suffixes else None


def read_file(path: Path, kind: str, *, field: str | None = None, delimiter: str | None = None) -> list[Row]:
    """Return the rows of a file. kind: json, csv, parquet, arrow or text.

    field: where the rows are in a JSON file that holds one object. Values of csv columns are numbers where all of the
    column's are. Raises ConfigError naming file and line.
    """
    try:
        if kind == "json":
            return _json_rows(path, _text(path), field)
        if kind == "csv":
            return _csv_rows(path, _text(path), delimiter)
        if kind == "text":
            return [{"text": line} for line in _text(path).splitlines()]
        if kind in ("parquet", "arrow"):
            return _table_rows(path, kind)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    raise ConfigError(f"{path}: unknown format {kind!r}; expected {', '.join(sorted(set(FORMATS.values())))}")


def first_columns(path: Path, kind: str, *, field: str | None = None, delimiter: str | None = None) -> list[str] | None:
    """Return the columns of a JSON-lines, JSON or csv file's first rows; None where that takes reading a big file.

    Raises ConfigError when one of the first rows is malformed.
    """
    if kind not in ("json", "csv") or path.name.endswith(_COMPRESSED):
        return None
    with path.open("rb") as handle:
        head = handle.read(_PEEK)
    whole = len(head) < _PEEK
    text = head.decode("utf-8-sig", errors="strict" if whole else "ignore")
    if not whole:
        text = text[: text.rfind("\n") + 1]
    if kind == "csv":
        return columns_of(_csv_rows(path, text, delimiter)) or None
    if field is None and _is_json(_first_line(text)) and _first_line(text).lstrip()[:1] == "{":
        lines = ((n, line) for n, line in enumerate(_lines(text), 1) if line.strip())
        return columns_of([_object(path, number, line) for number, line in islice(lines, _FIRST)])
    return columns_of(_json_rows(path, text, field)) or None if whole else None


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the columns that occur in the first rows, in order of appearance."""
    names: dict[str, None] = {}
    for row in rows[:1000]:
        names.update(dict.fromkeys(row))
    return list(names)


def _text(path: Path) -> str:
    if path.name.endswith(_COMPRESSED):
        import fsspec

        with fsspec.open(str(path), "rb", compression="infer") as handle:
            return str(handle.read().decode("utf-8-sig"))
    return path.read_text(encoding="utf-8-sig")


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


def _csv_rows(path: Path, text: str, delimiter: str | None) -> list[Row]:
    separator = delimiter or ("\t" if ".tsv" in path.suffixes else ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next(reader, None)
        if not header:
            return []
        if len(set(header)) != len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise ConfigError(f"{path}, line 1: the column {twice!r} is there twice")
        table: list[list[str]] = []
        for values in reader:
            if values and len(values) != len(header):
                raise ConfigError(
                    f"{path}, line {reader.line_num}: {len(values)} values; expected {len(header)} "
                    f"({', '.join(header)}); quote values that hold {separator!r}"
                )
            if values:
                table.append(values)
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: {error}") from error
    columns = [_numbers([row[index] for row in table]) for index in range(len(header))]
    return [dict(zip(header, values, strict=True)) for values in zip(*columns, strict=True)]


def _numbers(values: list[str]) -> list[Any]:
    """Return a column as numbers where all its values are; empty ones become None."""
    for kind in (int, float):
        try:
            return [kind(value) if value.strip() else None for value in values]
        except ValueError:
            continue
    return list(values)


def _table_rows(path: Path, kind: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        if kind == "parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            with pyarrow.memory_map(str(path)) as source:
                try:
                    table = pyarrow.ipc.open_file(source).read_all()
                except pyarrow.ArrowInvalid:
                    table = pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path} is no {kind} file: {error}") from error
    rows: list[Row] = table.to_pylist()
    return rows

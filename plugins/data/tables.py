"""Reads Parquet and Arrow files. Rows are made as they are asked for: a table takes a fraction of their memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from drupe.core.errors import ConfigError
from drupe.plugins.data.text_files import is_compressed

__all__ = ["TableRows", "table_rows"]

_AT_ONCE = 1000
"""Rows that are made at once where all are asked for in turn."""


class TableRows(Sequence[Mapping[str, Any]]):
    """The rows of a pyarrow table."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def column_names(self) -> list[str]:
        """The columns, which every row has."""
        return list(self._table.column_names)

    @property
    def label_names(self) -> dict[str, list[str]]:
        """Column → the names of its classes, where `datasets` left them in the file."""
        try:
            features = json.loads((self._table.schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        except (KeyError, TypeError, ValueError):
            return {}
        found = {}
        for name, feature in features.items():
            while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
                feature = feature["feature"]
            if isinstance(feature, dict) and isinstance(feature.get("names"), list):
                found[name] = [str(item) for item in feature["names"]]
        return found

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[position] for position in range(start, stop, step)]
            return TableRows(self._table.slice(start, max(stop - start, 0)))
        position = range(len(self))[index]
        row: Mapping[str, Any] = self._table.slice(position, 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._table.slice(start, _AT_ONCE).to_pylist()


def table_rows(path: Path, kind: str) -> TableRows:
    """Return the rows of a file. kind: parquet or arrow (a file or a stream). Raises ConfigError for another."""
    import pyarrow
    import pyarrow.parquet

    if is_compressed(path):
        raise ConfigError(f"{path}: {kind} files are packed by themselves; unpack it, and name {path.stem}")
    try:
        if kind == "parquet":
            # From this file alone, whatever the names of the folders above it say.
            return TableRows(pyarrow.parquet.read_table(path, partitioning=None))
        with pyarrow.memory_map(str(path)) as source:
            try:
                return TableRows(pyarrow.ipc.open_file(source).read_all())
            except pyarrow.ArrowInvalid:
                return TableRows(pyarrow.ipc.open_stream(source).read_all())
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path} is no {kind} file: {error}") from error

"""Rows that Hugging Face's datasets library reads: data sets on the hub, and those that it saved in a folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from drupe.core.errors import ConfigError, HostError
from drupe.plugins.data.options import LoadDataset
from drupe.plugins.data.rows import Row

__all__ = ["DatasetRows", "Table", "has_values", "hub_commit", "hub_table", "is_saved", "saved_table"]


@dataclass(frozen=True)
class Table:
    """Rows, and the names of the classes of label columns where the data tells them."""

    rows: Sequence[Row]
    label_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    origin: str = ""


class DatasetRows(Sequence[Row]):
    """A `datasets.Dataset` as a sequence of rows, read from disk as they are asked for: its own slices are columns."""

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded

    def __len__(self) -> int:
        return len(self.loaded)

    @property
    def column_names(self) -> list[str]:
        """The columns, which every row has."""
        return list(self.loaded.column_names)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return DatasetRows(self.loaded.select(range(*index.indices(len(self)))))
        row: Row = self.loaded[index]
        return row

    def __iter__(self) -> Iterator[Row]:
        return iter(self.loaded)

    def having(self, wanted: Mapping[str, Any]) -> DatasetRows:
        """Return the rows whose columns have the wanted values; only those columns are read to find them."""
        columns = [column for column in wanted if column in self.loaded.column_names]
        looked_at = self.loaded.select_columns(columns) if len(columns) == len(wanted) else self.loaded
        return DatasetRows(self.loaded.select([n for n, row in enumerate(looked_at) if has_values(row, wanted)]))


def is_saved(path: Path) -> bool:
    """Whether a folder holds what `save_to_disk` wrote: a split, or several."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def saved_table(path: Path) -> Table:
    """Return the rows of a split that was saved. Raises ConfigError."""
    import datasets
    import pyarrow

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path} is no data set that datasets saved, or not whole: {error}") from error
    return _of_dataset(loaded, path.name)


def hub_commit(config: LoadDataset) -> tuple[str, str | None]:
    """Return the commit of a data set on the hub, and the token that fetches it. Raises ConfigError, HostError."""
    from drupe.plugins.huggingface.sources.hub import hub_token, resolve_revision

    token = hub_token(config.token if isinstance(config.token, str) else None)
    return resolve_revision("datasets", str(config.data_name), config.revision, token), token


def hub_table(config: LoadDataset, limit: int | None) -> Table:
    """Return the rows of a data set on the hub. limit: how many are enough. Raises ConfigError, HostError."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    name = str(config.data_name)
    commit, token = hub_commit(config)
    datasets.disable_progress_bars()
    options: dict[str, Any] = {"revision": commit, "token": token, **config.builder_kwargs}
    for key in ("data_dir", "data_files"):
        if getattr(config, key) is not None:
            options[key] = getattr(config, key)
    try:
        loaded = datasets.load_dataset(name, config.subset, split=config.split, streaming=config.streaming, **options)
        if config.streaming:
            kept = (row for row in loaded if has_values(row, config.col_filters))
            rows = list(itertools.islice(kept, limit))
            return Table(rows, _label_names(loaded.features), f"{name}@{commit[:8]}")
    except (ConnectionError, TimeoutError) as error:
        raise HostError(f"the data set {name} can't be fetched: {error}") from error
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise ConfigError(f"the data set {name} (subset {config.subset}, split {config.split}): {error}") from error
    return _of_dataset(loaded, f"{name}@{commit[:8]}")


def has_values(row: Row, wanted: Mapping[str, Any]) -> bool:
    """Whether a row's columns have the wanted values. Raises ConfigError where there is no such column."""
    absent = [column for column in wanted if column not in row]
    if absent:
        raise ConfigError(f"col_filters: the data has no column {absent[0]!r}; it has: {', '.join(row)}")
    return all(row[column] == value for column, value in wanted.items())


def _of_dataset(loaded: Any, origin: str) -> Table:
    for name, feature in (loaded.features or {}).items():
        if type(feature).__name__ in ("Audio", "Video"):
            # Decoding takes libraries of its own, and most rows are wanted for what stands beside it.
            loaded = loaded.cast_column(name, type(feature)(decode=False))
    return Table(DatasetRows(loaded), _label_names(loaded.features), origin)


def _label_names(features: Any) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {}
    for name, feature in (features or {}).items():
        while hasattr(feature, "feature"):
            # Of a label for each word.
            feature = feature.feature
        if hasattr(feature, "names"):
            found[name] = list(feature.names)
    return found

"""Finds the rows that a load_dataset_config names: files beside the workflow, URLs, saved data sets, the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.sources import ModelSource, find_source
from drupe.core.stat_cache import path_identity
from drupe.plugins.data.data_folders import data_files, loading_script, split_files
from drupe.plugins.data.image_folders import BUILDER, class_names, has_images, image_rows, image_splits
from drupe.plugins.data.library_rows import (
    DatasetRows,
    Table,
    has_values,
    hub_commit,
    hub_table,
    is_saved,
    saved_table,
)
from drupe.plugins.data.options import LoadDataset
from drupe.plugins.data.rows import FORMATS, Row, format_of, read_file

__all__ = [
    "check_url",
    "count_rows",
    "file_kind",
    "identity",
    "is_hub_name",
    "load_table",
    "local_files",
    "reference_files",
    "split_names",
]

_SPLIT = re.compile(r"\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COUNTED = 64 << 20
"""Bytes up to which files are read just to count their rows."""


def is_hub_name(config: LoadDataset, folder: Path) -> bool:
    """Whether the rows come from the hub: a name of its form that is neither a file format nor a path that exists."""
    if config.data_name is None or config.format is not None or not _HUB_NAME.fullmatch(config.data_name):
        return False
    return not (folder / Path(config.data_name).expanduser()).exists()


def split_names(split: str) -> list[tuple[str, str | None, str | None]]:
    """Read "train[:100]+test" as (name, from, to) parts. Raises ConfigError."""
    parts = []
    for text in split.split("+"):
        match = _SPLIT.fullmatch(text)
        if match is None:
            raise ConfigError(f"split {split!r} can't be read; expected a name, name[from:to] or a sum of such")
        parts.append((match[1], match[2], match[3]))
    return parts


def local_files(config: LoadDataset, folder: Path) -> dict[str, list[str | Mapping[str, Any]]]:
    """Return split → files (paths, URLs or typed references), patterns expanded. Absent files are kept as named.

    Raises ConfigError when the config names no files.
    """
    base = folder / Path(config.data_dir).expanduser() if config.data_dir else folder
    named = config.data_files
    if named is None:
        return _files_of_path(config, folder, base)
    if isinstance(named, dict) and not isinstance(named.get("type"), str):
        return {split: _expanded(value, base) for split, value in named.items()}
    return {"train": _expanded(named, base)}


def identity(config: LoadDataset, folder: Path) -> Any:
    """Return JSON data that changes whenever the rows would: file digests, a commit of the hub. Light."""
    if is_hub_name(config, folder):
        commit, _ = hub_commit(config)
        return {"hub": str(config.data_name), "commit": commit}
    found: dict[str, Any] = {}
    for split in sorted({name for name, _, _ in split_names(config.split)}):
        for number, item in enumerate(_of_split(config, folder, split)):
            if isinstance(item, str) and "://" not in item:
                if not Path(item).exists():
                    raise ConfigError(f"{item} does not exist")
                name = f"{split}/{Path(item).name}"
                # Files of one name lie in several folders, whose own names differ from machine to machine.
                found[name if name not in found else f"{name}#{number}"] = path_identity(Path(item))
                if Path(item).is_dir():
                    # The number of a class follows from the other splits' folders too.
                    found[f"{split}/classes"] = class_names(Path(item))
            else:
                key = item if isinstance(item, str) else str(sorted(item.items()))
                found[f"{split}/{key}"] = _source(item, folder).identity(item, {}, folder)
    return found


def load_table(config: LoadDataset, folder: Path, context: JobContext, limit: int | None) -> Table:
    """Return the rows. limit: how many are enough (for hub data that is streamed). Raises ConfigError, HostError."""
    return _filtered(_all_rows(config, folder, context, limit), config.col_filters)


def _all_rows(config: LoadDataset, folder: Path, context: JobContext, limit: int | None) -> Table:
    if is_hub_name(config, folder):
        return hub_table(config, limit)
    parts: list[Sequence[Row]] = []
    origins: list[str] = []
    label_names: dict[str, Sequence[str]] = {}
    for name, start, stop in split_names(config.split):
        found: list[Sequence[Row]] = []
        for item in _of_split(config, folder, name):
            path = _fetched(item, folder, context)
            origins.append(path.name)
            if path.is_dir() and is_saved(path):
                table = saved_table(path)
                found.append(table.rows)
                label_names |= table.label_names
            elif path.is_dir() and (config.format == BUILDER or has_images(path)):
                pictures, names = image_rows(path)
                found.append(pictures)
                label_names |= names
            else:
                for file in _data_files(path, config) if path.is_dir() else [path]:
                    rows_of_file = _read(file, config)
                    found.append(rows_of_file)
                    label_names |= getattr(rows_of_file, "label_names", {})
        # Of a single file, rows that are made as they are asked for stay that.
        whole = found[0] if len(found) == 1 else [row for one in found for row in one]
        parts.append(whole[_bound(start, len(whole), 0) : _bound(stop, len(whole), len(whole))])
    if parts and not any(len(part) for part in parts) and "[" in config.split:
        raise ConfigError(f"split {config.split!r} of {', '.join(origins)} holds no row")
    rows = parts[0] if len(parts) == 1 else [row for part in parts for row in part]
    return Table(rows, label_names, ", ".join(origins))


def count_rows(config: LoadDataset, folder: Path) -> int | None:
    """Return how many rows the files have; None where they are not on this machine, are big, filtered or unreadable."""
    if config.col_filters:
        return None
    count = 0
    try:
        for name, start, stop in split_names(config.split):
            size = 0
            for item in _of_split(config, folder, name):
                if not isinstance(item, str) or "://" in item or not Path(item).is_file():
                    return None
                path = Path(item)
                if path.stat().st_size > _COUNTED:
                    return None
                size += len(_read(path, config))
            count += max(_bound(stop, size, size) - _bound(start, size, 0), 0)
    except ConfigError:
        return None
    return count


def _files_of_path(config: LoadDataset, folder: Path, base: Path) -> dict[str, list[str | Mapping[str, Any]]]:
    place = base if config.data_dir else None
    if config.data_name is not None and config.format is None:
        place = folder / Path(config.data_name).expanduser()
    if place is None:
        if config.data_name is None:
            raise ConfigError("no data are named; give data_name, data_files or data_dir")
        raise ConfigError(f"data_name {config.data_name!r} needs data_files (or data_dir)")
    if config.subset is not None and place.is_dir():
        there = sorted(path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
        if config.subset in there:
            place = place / config.subset
        elif config.subset != "default":
            raise ConfigError(
                f"subset {config.subset!r} is no folder of {place}; there are: {', '.join(there) or 'none'}"
            )
    if place.is_file():
        return {"train": [str(place)]}
    if is_saved(place):
        splits = [p.name for p in place.iterdir() if (p / "state.json").is_file()]
        return {name: [str(place / name)] for name in splits} or {"train": [str(place)]}
    if config.format == BUILDER:
        return _image_folders(place) or {"train": [str(place)]}
    if not place.is_dir():
        return {"train": [str(place)]}
    script = loading_script(place)
    if script is not None:
        raise ConfigError(
            f"{place} is loaded by a script, {script.name}, which is not run here; name the files that it reads as "
            "data_files, or have a function of a user_script load them"
        )
    named = split_files(place, data_files(place, config.format))
    found: dict[str, list[str | Mapping[str, Any]]] = {split: list(files) for split, files in named.items()}
    return found or _image_folders(place) or {"train": [str(place)]}


def _image_folders(place: Path) -> dict[str, list[str | Mapping[str, Any]]]:
    found = image_splits(place) if place.is_dir() else {}
    return {name: [str(path)] for name, path in found.items()}


def _expanded(value: Any, base: Path) -> list[str | Mapping[str, Any]]:
    items = value if isinstance(value, list) else [value]
    found: list[str | Mapping[str, Any]] = []
    for item in items:
        if isinstance(item, Mapping) or "://" in str(item):
            found.append(item)
            continue
        path = base / Path(str(item)).expanduser()
        pattern = any(sign in str(item) for sign in "*?[")
        anchor = Path(path.anchor)
        matches = sorted(anchor.glob(str(path.relative_to(anchor)))) if pattern and not path.exists() else []
        found += [str(match) for match in matches] or [str(path)]
    return found


def _of_split(config: LoadDataset, folder: Path, split: str) -> list[str | Mapping[str, Any]]:
    files = local_files(config, folder)
    if split not in files:
        hint = ""
        if list(files) == ["train"] and not isinstance(config.data_files, dict):
            hint = '; files that are not named by split are all "train"'
        raise ConfigError(f"split {split!r} is not there; there are: {', '.join(sorted(files))}{hint}")
    return files[split]


def file_kind(config: LoadDataset, path: Path) -> str:
    """Return the format of a file of rows. Raises ConfigError where nothing tells it."""
    named = config.format
    if named == BUILDER:
        raise ConfigError(f"{BUILDER} reads a folder; name it as data_dir, not {path.name} as data_files")
    kind = named or format_of(path)
    if kind is None:
        known = ", ".join(sorted(FORMATS))
        raise ConfigError(f"{path}: its name tells no format ({known}); say json, csv, parquet or text as data_name")
    return kind


def _read(path: Path, config: LoadDataset) -> Sequence[Row]:
    return read_file(path, file_kind(config, path), field=config.field, delimiter=config.separator)


def _source(item: str | Mapping[str, Any], folder: Path) -> ModelSource:
    from drupe.core.registry import get_registry

    return find_source(get_registry(), item, folder)


def check_url(item: str, folder: Path) -> None:
    """Raise ConfigError for a URL that no installed source fetches."""
    _source(item, folder)


def reference_files(item: Mapping[str, Any], folder: Path) -> Sequence[Path]:
    """Return the files of this machine that are needed to fetch what a typed reference names."""
    return _source(item, folder).files(item, folder)


def _fetched(item: str | Mapping[str, Any], folder: Path, context: JobContext) -> Path:
    if isinstance(item, str) and "://" not in item:
        path = Path(item)
        if not path.exists():
            raise ConfigError(f"{path} does not exist")
        return path
    into = context.checkpoint_dir / "data"
    into.mkdir(parents=True, exist_ok=True)
    return _source(item, folder).fetch(item, {}, into, context)


def _data_files(folder: Path, config: LoadDataset) -> list[Path]:
    """Return the files of rows in a folder that was fetched. Raises ConfigError where there are none."""
    kind = config.format
    named = data_files(folder, kind)
    # Files whose names tell no format are of the one that data_name tells.
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith((".", "README"))]
    known = kind is not None
    if not named and not (found and known):
        raise ConfigError(
            f"{folder} holds no file of rows; expected {', '.join(sorted(FORMATS))} files, a saved data set, or images"
        )
    return named or found


def _bound(text: str | None, size: int, default: int) -> int:
    if text is None:
        return default
    # Halves go to the even number, as in Hugging Face's datasets.
    value = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return min(value, size) if value >= 0 else max(size + value, 0)


def _filtered(table: Table, wanted: Mapping[str, Any]) -> Table:
    """Keep the rows whose columns have the wanted values. Raises ConfigError where none has."""
    if not wanted:
        return table
    rows = table.rows
    kept = rows.having(wanted) if isinstance(rows, DatasetRows) else [row for row in rows if has_values(row, wanted)]
    if not kept and rows:
        said = ", ".join(f"{column} {value!r}" for column, value in wanted.items())
        raise ConfigError(f"col_filters: none of the {len(rows)} rows has {said}")
    return replace(table, rows=kept)

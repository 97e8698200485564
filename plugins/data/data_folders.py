"""Folders of files of rows: which files are data, which split each belongs to, and what such a folder must not hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from drupe.core.errors import ConfigError
from drupe.plugins.data.rows import format_of

__all__ = ["SPLITS", "data_files", "loading_script", "split_files"]

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split → the words by which files and folders tell it, as in Hugging Face's datasets."""
_BETWEEN = r"[-._ 0-9]"
"""What may stand around such a word."""
_PATTERNS = {
    split: re.compile(rf"(?:^|.*{_BETWEEN})(?:{'|'.join(words)})(?:{_BETWEEN}.*|$)", re.IGNORECASE)
    for split, words in SPLITS.items()
}
_SHARD = re.compile(r"([A-Za-z]\w*)-\d{5}-of-\d{5}\b.*")
_NO_DATA = ("readme", "license", "licence", "metadata.", "config.json", "dataset_info", "dataset_dict.json")


def data_files(folder: Path, kind: str | None = None) -> list[Path]:
    """Return the files of rows in a folder and below, sorted by path. kind: of this format only.

    Hidden files and folders, and what describes a data set (README, LICENSE, dataset_infos.json, …), are none.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        told = format_of(path)
        plain = not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
        wanted = told is not None and kind in (None, told)
        if wanted and plain and path.is_file() and not path.name.lower().startswith(_NO_DATA):
            found.append(path)
    return found


def split_files(folder: Path, files: Sequence[Path]) -> Mapping[str, list[str]]:
    """Return split → files: by the folders that they lie in, else by their names, else all are "train".

    The names are those that Hugging Face's datasets knows (train, dev, test, …, alone or beside a dash, dot, digit, …);
    where some files tell a split, the others are not read. Raises ConfigError where the files of a split have several
    formats, as nobody can say then which of them is meant.
    """
    found = _by_split(folder, files)
    for split, paths in found.items():
        kinds = {format_of(Path(path)): Path(path) for path in reversed(paths)}
        if len(kinds) > 1:
            named = "; ".join(f"{kind}: {path.relative_to(folder)}" for kind, path in sorted(kinds.items(), key=str))
            raise ConfigError(
                f"{folder} holds files of several formats for the split {split} ({named}); say which are meant as "
                "data_files, or name the folder as data_dir and the format as data_name"
            )
    return found


def _by_split(folder: Path, files: Sequence[Path]) -> Mapping[str, list[str]]:
    shards = {path: _SHARD.fullmatch(path.name) for path in files}
    if files and all(shards.values()):
        named: dict[str, list[str]] = {}
        for path, match in shards.items():
            assert match is not None
            named.setdefault(match[1], []).append(str(path))
        return named
    by_folder = {path: _split_of(path.relative_to(folder).parts[:-1]) for path in files}
    by_name = {path: _split_of((path.name,)) for path in files}
    for told in (by_folder, by_name):
        named = {}
        for path, split in told.items():
            if split is not None:
                named.setdefault(split, []).append(str(path))
        if named:
            return named
    return {"train": [str(path) for path in files]} if files else {}


def loading_script(folder: Path) -> Path | None:
    """Return the Python file that loads a data set in libraries which run it: one that goes by its folder's name."""
    script = folder / f"{folder.resolve().name}.py"
    return script if script.is_file() else None


def _split_of(names: Sequence[str]) -> str | None:
    for name in names:
        for split, pattern in _PATTERNS.items():
            if pattern.fullmatch(name):
                return split
    return None

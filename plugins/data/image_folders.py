"""Folders of images: a sub-folder per class, or a metadata file beside the images, with or without splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.plugins.data.data_folders import SPLITS
from drupe.plugins.data.rows import Row, read_file

__all__ = ["BUILDER", "IMAGE_SUFFIXES", "class_names", "has_images", "image_rows", "image_splits"]

BUILDER = "imagefolder"
"""The data_name that reads a folder this way, as in Hugging Face's datasets."""

IMAGE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip

_SPLITS = {word: split for split, words in SPLITS.items() for word in words}
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def image_splits(folder: Path) -> dict[str, Path]:
    """Return split → folder: sub-folders that are named like splits, else the whole as "train"; {} without images."""
    if not has_images(folder):
        return {}
    named = {_SPLITS[path.name.lower()]: path for path in _folders(folder) if path.name.lower() in _SPLITS}
    return named or {"train": folder}


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes of a split's folder, sorted: its sub-folders and those of the other splits."""
    parents = [folder]
    if folder.name.lower() in _SPLITS:
        parents = [path for path in _folders(folder.parent) if path.name.lower() in _SPLITS]
    return sorted({path.name for parent in parents for path in _folders(parent)})


def has_images(folder: Path) -> bool:
    """Whether a folder, or one below it, holds an image file."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))


def image_rows(folder: Path) -> tuple[list[Row], dict[str, Sequence[str]]]:
    """Return rows {"image": path, "label": number} of one split's folder, sorted by path, and {"label": names}.

    The classes are the sub-folders by name, those of the other splits included, so that a class has the same number in
    each. With a metadata file the rows are its own, "file_name" being the image. Raises ConfigError for an absent one.
    """
    for name in _METADATA:
        if (folder / name).is_file():
            return _of_metadata(folder, folder / name), {}
    classes = class_names(folder)
    number = {name: index for index, name in enumerate(classes)}
    rows: list[Row] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith("."):
            row: dict[str, Any] = {"image": str(path)}
            inside = path.relative_to(folder).parts
            if len(inside) > 1:
                row["label"] = number[inside[0]]
            rows.append(row)
    if any("label" in row for row in rows) and not all("label" in row for row in rows):
        loose = next(str(row["image"]) for row in rows if "label" not in row)
        raise ConfigError(f"{loose} lies in no class's folder, but others do; move it into one")
    return rows, {"label": classes} if classes else {}


def _of_metadata(folder: Path, path: Path) -> list[Row]:
    kind = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}[path.suffix]
    rows: list[Row] = []
    for number, row in enumerate(read_file(path, kind), 1):
        image = folder / str(row.get("file_name", ""))
        if not image.is_file():
            raise ConfigError(f"{path}, row {number}: file_name {row.get('file_name')!r} is no file beside it")
        rows.append({"image": str(image), **{key: value for key, value in row.items() if key != "file_name"}})
    return rows


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))

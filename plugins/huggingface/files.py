"""Copies model files into a job's output: clones where the file system can, never links.

A hard link to a user's file would let the store's read-only mode, or a later edit by the user, reach through it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.script_files import script_files

__all__ = [
    "HEADER_TYPES",
    "OTHER_FORMS",
    "copy_file",
    "copy_script",
    "copy_tree",
    "plain_files",
    "weight_names",
    "weight_types",
]

HEADER_TYPES: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of numbers with a fraction in headers of safetensors files; smaller ones are only stored beside those."""
_LARGEST_HEADER = 100_000_000
"""Bytes; safetensors takes no larger ones."""


OTHER_FORMS = ("onnx", "openvino", "coreml", "original", "flax", "tf", "runs")
"""Folders in which hub repositories keep a model once more, for other frameworks."""

_FICLONE = 0x40049409


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes; on file systems that can, as a clone that shares them until one is written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, 16 << 20)


def copy_script(script: Path, into: Path) -> None:
    """Copy a user's script with the modules and packages beside it that it imports."""
    for path in script_files(script):
        copy_file(path, into / path.relative_to(script.parent))


def plain_files(folder: Path) -> list[Path]:
    """Return the files below a folder by relative path, sorted; hidden files and folders are left out."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(place) / name).relative_to(folder) for name in files if not name.startswith(".")]
    return sorted(found)


def copy_tree(
    source: Path, into: Path, context: JobContext, wanted: Callable[[Path], bool] = lambda path: True
) -> None:
    """Copy the wanted files below `source`; those left out are named in the job's report.

    Raises ConfigError when none is wanted.
    """
    files = plain_files(source)
    taken = [path for path in files if wanted(path)]
    if not taken:
        raise ConfigError(f"{source} holds no model files; it holds: {', '.join(map(str, files[:8])) or 'nothing'}")
    for number, path in enumerate(taken):
        context.progress(number, len(taken), f"copying {path.name}")
        copy_file(source / path, into / path)
    left = [path.as_posix() for path in files if path not in set(taken)]
    if left:
        context.report.setdefault("left_out", []).extend(left)


def weight_names(folder: Path) -> Iterator[str]:
    """Yield the names in the headers of a folder's safetensors files."""
    yield from (name for name, _ in weight_types(folder))


def weight_types(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield names and types (F32, BF16, …) in the headers of a folder's safetensors files; their layout is public and
    light to read. A file that has no such header (a pointer of Git LFS) tells nothing; who loads it says so."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            try:
                header: Mapping[str, Any] = json.loads(handle.read(size)) if size <= _LARGEST_HEADER else {}
            except ValueError:
                continue
        yield from ((name, str(entry["dtype"])) for name, entry in header.items() if name != "__metadata__")

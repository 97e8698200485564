"""Opens files of text: UTF-8, as they are or packed."""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from drupe.core.errors import ConfigError

__all__ = ["COMPRESSED", "decoded", "is_compressed", "text_of_file"]

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Ends of names of packed files; .zip: an archive of one file."""

_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)


def is_compressed(path: Path) -> bool:
    """Whether a file's name says that it is packed."""
    return path.name.lower().endswith(COMPRESSED)


def text_of_file(path: Path) -> str:
    """Return a file's text, unpacked. Raises ConfigError for what is no UTF-8 or can't be unpacked, OSError."""
    data = path.read_bytes()
    if is_compressed(path):
        data = _unpacked(path, data)
    return decoded(path, data).replace("\r\n", "\n").replace("\r", "\n")


def decoded(path: Path, data: bytes, *, cut: bool = False) -> str:
    """Return bytes of a file as text, less the mark of its order. cut: the last character may be incomplete.

    Raises ConfigError naming the file and the byte that is no UTF-8.
    """
    try:
        return data.decode("utf-8-sig", errors="ignore" if cut else "strict")
    except UnicodeDecodeError as error:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "looks like UTF-16" if wide else f"byte {error.start} is {data[error.start]:#04x}"
        raise ConfigError(f"{path} is not UTF-8 text: {what}; save it as UTF-8") from error


def _unpacked(path: Path, data: bytes) -> bytes:
    suffix = path.suffix.lower()
    try:
        return _OPENERS[suffix](path, data)
    except _BROKEN as error:
        raise ConfigError(f"{path} can't be unpacked: {error or type(error).__name__}; is it whole?") from error


def _unzipped(path: Path, data: bytes) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        if len(names) != 1:
            raise ConfigError(f"{path} holds {len(names)} files ({', '.join(names[:5])}); expected one; unpack it")
        return archive.read(names[0])


def _zstandard(path: Path, data: bytes) -> bytes:
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError as error:
        raise ConfigError(f"{path}: reading .zst takes the package zstandard; pip install zstandard") from error
    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            return bytes(reader.read())
    except zstandard.ZstdError as error:
        raise ConfigError(f"{path} can't be unpacked: {error}; is it whole?") from error


_OPENERS: Mapping[str, Callable[[Path, bytes], bytes]] = {
    ".gz": lambda path, data: gzip.decompress(data),
    ".bz2": lambda path, data: bz2.decompress(data),
    ".xz": lambda path, data: lzma.decompress(data),
    ".zip": _unzipped,
    ".zst": _zstandard,
}

"""Models behind a URL that fsspec can open: s3://, gs://, az://, https://, memory://, …"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, HostError
from drupe.core.sources import ModelSource

__all__ = ["RemoteSource"]

_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "LastModified", "last_modified", "mtime", "created")


class RemoteSource(ModelSource):
    """Fetches a file or folder through fsspec."""

    def identity(self, reference: str | Mapping[str, Any], options: Mapping[str, Any], workflow_dir: Path) -> Any:
        """Return size and tag of every file, as the file system reports them."""
        system, path = _open(str(reference))
        try:
            names = system.find(path) or [path]
            return {name.removeprefix(path).lstrip("/"): _mark(system.info(name)) for name in sorted(names)}
        except FileNotFoundError as error:
            raise ConfigError(f"{reference} does not exist") from error
        except OSError as error:
            raise HostError(f"{reference} can't be read: {error}") from error

    def fetch(
        self, reference: str | Mapping[str, Any], options: Mapping[str, Any], into: Path, context: JobContext
    ) -> Path:
        """Download the file or folder below `into`."""
        system, path = _open(str(reference))
        target = into / (path.rstrip("/").rsplit("/", 1)[-1] or "model")
        context.progress(0, 1, f"downloading {reference}")
        try:
            if system.isdir(path):
                system.get(path.rstrip("/") + "/", str(target) + "/", recursive=True)
            else:
                system.get_file(path, str(target))
        except FileNotFoundError as error:
            raise ConfigError(f"{reference} does not exist") from error
        except OSError as error:
            raise HostError(f"{reference} can't be downloaded: {error}") from error
        return target


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url} can't be opened: {error}") from error
    return system, str(path)


def _mark(info: Mapping[str, Any]) -> list[str]:
    return [str(info.get("size"))] + [f"{key}={info[key]}" for key in _MARKS if info.get(key) is not None]

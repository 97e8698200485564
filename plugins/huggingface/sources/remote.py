"""Models behind a URL that fsspec can open: s3://, gs://, az://, https://, memory://, …"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, DrupeError, HostError
from drupe.core.sources import ModelSource

__all__ = ["RemoteSource"]

_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "LastModified", "last_modified", "mtime", "created")


class RemoteSource(ModelSource):
    """Fetches a file or folder through fsspec."""

    def identity(self, reference: str | Mapping[str, Any], options: Mapping[str, Any], workflow_dir: Path) -> Any:
        """Return size and tag of every file, as the file system reports them."""
        system, path = _open(str(reference))
        try:
            names = system.glob(path) if _pattern(path) else system.find(path) or [path]
            if not names:
                raise ConfigError(f"nothing matches {reference}")
            start = _fixed(path)
            return {name.removeprefix(start).lstrip("/"): _mark(system.info(name)) for name in sorted(names)}
        except FileNotFoundError as error:
            raise ConfigError(f"{reference} does not exist") from error
        except DrupeError:
            raise
        except Exception as error:  # every storage raises errors of its own (credentials, clients, protocols)
            raise HostError(f"{reference} can't be read: {error}") from error

    def fetch(
        self, reference: str | Mapping[str, Any], options: Mapping[str, Any], into: Path, context: JobContext
    ) -> Path:
        """Download the file or folder below `into`."""
        system, path = _open(str(reference))
        start = _fixed(path)
        target = into / (start.rstrip("/").rsplit("/", 1)[-1] or "model")
        context.progress(0, 1, f"downloading {reference}")
        try:
            if _pattern(path):
                names = sorted(name for name in system.glob(path) if not system.isdir(name))
                if not names:
                    raise ConfigError(f"nothing matches {reference}")
                for name in names:
                    file = target / name.removeprefix(start).lstrip("/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(name, str(file))
            elif system.isdir(path):
                system.get(path.rstrip("/") + "/", str(target) + "/", recursive=True)
            else:
                system.get_file(path, str(target))
        except FileNotFoundError as error:
            raise ConfigError(f"{reference} does not exist") from error
        except DrupeError:
            raise
        except Exception as error:  # as above
            raise HostError(f"{reference} can't be downloaded: {error}") from error
        return target


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    options: dict[str, Any] = {}
    if url.split("://")[0] in ("abfs", "abfss", "az", "adl") and "AZURE_STORAGE_ANON" not in os.environ:
        # adlfs would ask as nobody; with this it takes the credentials that azure-identity finds.
        options["anon"] = False
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url} can't be opened: {error}") from error
    return system, str(path)


def _pattern(path: str) -> bool:
    return any(sign in path for sign in "*[")


def _fixed(path: str) -> str:
    """Return the folder before the first wildcard, or the path where there is none."""
    signs = [path.index(sign) for sign in "*[" if sign in path]
    return path[: min(signs)].rpartition("/")[0] if signs else path


def _mark(info: Mapping[str, Any]) -> list[str]:
    return [str(info.get("size"))] + [f"{key}={info[key]}" for key in _MARKS if info.get(key) is not None]

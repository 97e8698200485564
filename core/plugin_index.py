"""What the installed plugins contribute, kept on disk, so that nothing of them is imported to list it.

One JSON file per Python environment. It holds what the environment looked like (every distribution's folder and the
state of its entry points) and a record per plugin with the state of the files that it was made from; an install, an
uninstall, an upgrade or an edit of any of them makes what it touches stale. Modules that the command line needs for
`drupe --help` are imported here and no others.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

__all__ = ["CATALOGUE_GROUP", "GROUP", "EntryPoint", "PluginIndex", "file_state", "home_folder"]

GROUP = "drupe"
CATALOGUE_GROUP = "drupe.catalogues"
_FORMAT = 1
_MOST_FILES = 32
"""Environments that are remembered; the ones not used longest are forgotten."""


@dataclass(frozen=True)
class EntryPoint:
    """An entry point and the distribution that has it."""

    group: str
    name: str
    value: str
    distribution: str
    version: str

    @property
    def key(self) -> str:
        """What tells it from every other one."""
        return f"{self.group} {self.distribution} {self.version} {self.name} {self.value}"


def home_folder() -> Path:
    """Return the folder for what Drupe may rebuild at any time: $DRUPE_HOME or ~/.cache/drupe."""
    home = os.environ.get("DRUPE_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "drupe"


def file_state(path: str) -> list[int] | None:
    """Return [mtime in ns, size] of a file, or None when it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116  (hundreds of these are made; a Path each costs more than the call)
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]


class PluginIndex:
    """The entry points of this environment, and a record for each plugin that was looked at."""

    def __init__(self) -> None:
        self._environment, holders = _environment()
        name = f"{sys.version_info[0]}.{sys.version_info[1]}-{crc32(repr([sys.prefix, holders]).encode()):08x}.json"
        self._path = home_folder() / "plugins" / name
        stored = self._read()
        self.unchanged = stored.get("environment") == self._environment
        """Whether nothing was installed, removed or changed in its entry points since the file was written."""
        self.records: dict[str, dict[str, Any]] = stored.get("records", {})
        if self.unchanged:
            self.points = [EntryPoint(*fields) for fields in stored["points"]]
        else:
            self.points = _entry_points()
            known = {point.key for point in self.points}
            # What failed may work now that another distribution is there.
            self.records = {
                key: record for key, record in self.records.items() if key in known and record["status"] == "active"
            }
        self._changed = not self.unchanged

    def group(self, name: str) -> list[EntryPoint]:
        """Return the entry points of a group."""
        return [point for point in self.points if point.group == name]

    def record(self, point: EntryPoint) -> dict[str, Any] | None:
        """Return the record of a plugin, or None when there is none or a file that it was made from changed."""
        record = self.records.get(point.key)
        if record is None or any(file_state(path) != state for path, state in record["files"].items()):
            return None
        return record

    def put(self, point: EntryPoint, record: Mapping[str, Any]) -> None:
        """Replace the record of a plugin."""
        self.records[point.key] = dict(record)
        self._changed = True

    def save(self) -> None:
        """Write the file where something changed. One that can't be written costs time, not correctness."""
        if not self._changed:
            return
        document = {
            "format": _FORMAT,
            "drupe": _own_state(),
            "environment": self._environment,
            "points": [[p.group, p.name, p.value, p.distribution, p.version] for p in self.points],
            "records": self.records,
        }
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
            temporary.replace(self._path)
            _forget(self._path.parent)
        except OSError:
            _remove(temporary)
        self._changed = False

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT or stored.get("drupe") != _own_state():
            return {}
        return stored


def _environment() -> tuple[list[Any], list[str]]:
    """Return the state of everything that entry points come from, and the folders that hold distributions."""
    states: list[Any] = []
    holders = []
    for folder in dict.fromkeys(path or os.curdir for path in sys.path):
        try:
            names = sorted(n for n in os.listdir(folder) if n.endswith((".dist-info", ".egg-info", ".egg")))  # noqa: PTH208
        except OSError:
            state = file_state(folder)
            if state is not None:  # An archive on the path.
                states.append([folder, state])
                holders.append(folder)
            continue
        if names:
            where = os.path.abspath(folder)  # noqa: PTH100
            holders.append(where)
            states.append([where, [[name, file_state(f"{folder}/{name}/entry_points.txt")] for name in names]])
    return states, holders


def _own_state() -> list[Any]:
    """The state of what gives records their form: another drupe may read and write other specs."""
    return [
        file_state(str(Path(__file__).with_name(name))) for name in ("specs.py", "hookspecs.py", "plugin_loading.py")
    ]


def _entry_points() -> list[EntryPoint]:
    import importlib.metadata

    return [
        EntryPoint(group, p.name, p.value, p.dist.name if p.dist else "?", p.dist.version if p.dist else "?")
        for group in (GROUP, CATALOGUE_GROUP)
        for p in importlib.metadata.entry_points(group=group)
    ]


def _forget(folder: Path) -> None:
    files: Iterable[Path] = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in list(files)[_MOST_FILES:]:
        _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # Someone else's to remove.
        path.unlink(missing_ok=True)

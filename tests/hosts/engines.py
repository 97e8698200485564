"""A container engine for tests: Podman's API on a socket, with an image made of this machine's own files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Engine", "engine_fault", "podman"]

IMAGE = "localhost/drupe-test:1"


@dataclass(frozen=True)
class Engine:
    """A running engine. volumes: what its image needs of this machine, mounted read-only."""

    url: str
    image: str
    volumes: list[str]


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment in which podman keeps its things in a folder and asks for no more than it may."""
    folder.mkdir(parents=True, exist_ok=True)
    files, processes = (resource.getrlimit(n)[1] for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    (folder / "containers.conf").write_text(
        "[containers]\n"
        f'default_ulimits = ["nofile={min(files, 20000)}:{min(files, 20000)}", "nproc={min(processes, 1000)}:'
        f'{min(processes, 1000)}"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    return {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}


def _podman(folder: Path) -> list[str]:
    return ["podman", f"--root={folder}/storage", f"--runroot={folder}/run", "--storage-driver=vfs"]


def engine_fault(folder: Path) -> str | None:
    """Return why no container can be run here, or None."""
    for program in ("podman", "runc"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return f"{program} is not installed"
    if os.getuid() != 0:
        return "podman is run as root here"
    try:
        _make_image(folder)
        subprocess.run(
            [*_podman(folder), "run", "--rm", "--network=none", "-v=/usr:/usr:ro", IMAGE, "/bin/true"],
            env=_environment(folder),
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"containers don't run here: {str(said).strip().splitlines()[-1]}"
    return None


def _make_image(folder: Path) -> None:
    """Make an image of empty folders, onto which the tests mount this machine's /usr and Python."""
    root = folder / "image"
    for name in ("usr", "tmp", "proc", "sys", "dev", "etc", "run"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    subprocess.run(["tar", "-C", root, "-cf", folder / "image.tar", "."], check=True)
    subprocess.run(
        [*_podman(folder), "import", folder / "image.tar", IMAGE],
        env=_environment(folder),
        check=True,
        capture_output=True,
        timeout=60,
    )


@contextmanager
def podman(folder: Path) -> Iterator[Engine]:
    """Serve podman's API on a socket in the folder, after `engine_fault` found none."""
    import drupe

    socket = folder / "engine.sock"
    with (folder / "service.log").open("w") as log:
        service = subprocess.Popen(
            [*_podman(folder), "system", "service", "--time=0", f"unix://{socket}"],
            env=_environment(folder),
            # What watches a container says of its end, out of memory above all, in a file of this folder.
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    sources = {path.resolve() for path in Path(drupe.__file__).parent.iterdir()} | {Path(drupe.__file__).parent}
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), *(path if path.is_dir() else path.parent for path in sources)}
    volumes = ["/usr:/usr:ro", *(f"{path}:{path}:ro" for path in sorted(prefixes))]
    try:
        end = time.monotonic() + 20
        while not socket.exists():
            if time.monotonic() > end:
                raise TimeoutError((folder / "service.log").read_text())
            time.sleep(0.05)
        yield Engine(f"unix://{socket}", IMAGE, volumes)
    finally:
        service.terminate()
        service.wait()

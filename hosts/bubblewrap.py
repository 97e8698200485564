"""A sandbox for code that is not trusted, by bubblewrap: no network, a read-only root, few variables.

The job sees the system, the Python environment and what it reads, all read-only; its own folder and checkpoint are
writable, its inputs are not. The home folder and /tmp are empty. Only the import of a model, which runs no code of the
model, has the network.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from drupe.core.errors import HostError
from drupe.core.introspect import cache_folder
from drupe.core.job import Job
from drupe.core.job_files import job_paths

__all__ = ["sandbox_command", "sandbox_fault"]

_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY", "PYTHONPATH", "HF_HUB_OFFLINE")
_FETCHING = ("HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "PIP_FIND_LINKS")
_PROXY = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")


@functools.cache
def sandbox_fault() -> str | None:
    """Return what keeps bubblewrap from working here, or None."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap is not installed; install the system's package bubblewrap"
    tried = subprocess.run(
        [bwrap, "--unshare-all", "--ro-bind", "/", "/", "/bin/true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"bubblewrap does not work here: {tried.stderr.strip()}"
    return None


def sandbox_command(job: Path, env: Mapping[str, str]) -> list[str]:
    """Return the command to put before the one that is to run in the sandbox.

    env: variables for the job besides the few that are kept. Raises HostError where there is no bubblewrap.
    """
    fault = sandbox_fault()
    if fault is not None:
        raise HostError(fault, retry=False)
    what = Job.from_json(json.loads((job / "job.json").read_text(encoding="utf-8")))
    fetching = what.kind == "import"
    command = ["bwrap", "--unshare-all", *(["--share-net"] if fetching else [])]
    command += ["--die-with-parent", "--new-session", "--clearenv"]
    command += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/dev/shm"]
    home = Path.home()
    command += ["--tmpfs", str(home)]
    for folder in (Path("/run"), Path("/var/tmp"), Path("/mnt"), Path("/media"), Path("/srv")):
        if folder.is_dir() and not folder.is_symlink():
            command += ["--tmpfs", str(folder)]
    for path in _readable(what, env):
        command += ["--ro-bind", str(path), str(path)]
    if fetching:
        cache_folder().mkdir(parents=True, exist_ok=True)
        command += ["--bind", str(cache_folder()), str(cache_folder())]
    command += ["--bind", str(job), str(job)]
    if (job / "inputs").is_dir():
        command += ["--ro-bind", str(job / "inputs"), str(job / "inputs")]
    checkpoint = (job / "checkpoint").resolve()
    if checkpoint.is_dir():
        command += ["--bind", str(checkpoint), str(checkpoint)]
    kept = (*_KEPT, *_FETCHING, *_PROXY) if fetching else _KEPT
    variables = {name: os.environ[name] for name in kept if name in os.environ}
    for name, value in {**variables, "HOME": str(home), "TMPDIR": "/tmp", **env}.items():
        command += ["--setenv", name, value]
    return [*command, "--chdir", str(job), "--"]


def _readable(job: Job, env: Mapping[str, str]) -> list[Path]:
    """The parts of hidden folders that the job reads: Python, what is installed, the code of editable installs, data.

    Sorted, so that a folder is bound before what lies in it.
    """
    import drupe

    prefixes = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    installed = {Path(path) for path in (*sys.path, *site.getsitepackages()) if path}
    ours = {Path(drupe.__file__).parent}
    ours |= {path.resolve() for path in Path(drupe.__file__).parent.iterdir() if path.is_symlink()}
    added = env.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")).split(os.pathsep)
    paths = prefixes | installed | ours | {Path(path) for path in added if path} | set(job_paths(job))
    if job.workflow_dir and Path(job.workflow_dir) != Path.home():
        paths.add(Path(job.workflow_dir))
    found = {variant for path in paths for variant in (path, path.resolve()) if variant.exists()}
    return sorted(path for path in found if path != Path("/"))

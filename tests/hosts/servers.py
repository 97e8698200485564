"""Real servers on loopback, started by tests: sshd and a Slurm of one node."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Sshd", "free_port", "sshd"]


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def wait_for(port: int, seconds: float = 20) -> None:
    """Wait until somebody listens on a port of this machine."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on port {port}")


@dataclass(frozen=True)
class Sshd:
    """A running sshd. key: accepted there. wrong_key: not."""

    port: int
    key: Path
    wrong_key: Path
    known_hosts: Path

    @property
    def options(self) -> dict[str, str]:
        """What `ssh -o` needs to reach it."""
        return {"UserKnownHostsFile": str(self.known_hosts), "StrictHostKeyChecking": "yes"}


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """Run sshd on a free port of 127.0.0.1, with keys made for it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("host_key", "key", "wrong_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    host_key = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    program = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
    assert program is not None
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        wait_for(port)
        yield Sshd(port, folder / "key", folder / "wrong_key", folder / "known_hosts")
    finally:
        server.terminate()
        server.wait()

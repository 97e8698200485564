"""Real servers on loopback, started by tests: sshd and a Slurm of one node."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Sshd", "free_port", "slurm", "sshd"]


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

    def reach(self, folder: Path) -> dict[str, Any]:
        """Return the config of the host SSH that reaches it; folder: where its files and jobs lie."""
        return {
            "address": f"{getpass.getuser()}@127.0.0.1",
            "port": self.port,
            "key_file": str(self.key),
            "options": self.options,
            "config_file": "/dev/null",
            "python": sys.executable,
            "folder": str(folder),
        }


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


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Run munged, slurmctld and slurmd for a cluster of this one node on loopback; yields its slurm.conf. As root."""
    for name in ("state", "spool", "log", "munge"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().partition(".")[0]
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    controller, node = free_port(), free_port()
    conf = folder / "slurm.conf"
    lines = f"""
        ClusterName=ci
        SlurmctldHost={host}(127.0.0.1)
        SlurmUser=root
        SlurmdUser=root
        AuthType=auth/munge
        AuthInfo=socket={folder}/munge/sock
        CredType=cred/munge
        SlurmctldPort={controller}
        SlurmdPort={node}
        MpiDefault=none
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        SelectType=select/cons_tres
        SelectTypeParameters=CR_Core
        SwitchType=switch/none
        JobAcctGatherType=jobacct_gather/none
        AccountingStorageType=accounting_storage/none
        ReturnToService=2
        InactiveLimit=0
        KillWait=5
        MinJobAge=60
        SchedulerParameters=sched_interval=1,batch_sched_delay=0
        CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
        SlurmctldPidFile={folder}/slurmctld.pid
        SlurmdPidFile={folder}/slurmd.pid
        StateSaveLocation={folder}/state
        SlurmdSpoolDir={folder}/spool
        SlurmctldLogFile={folder}/log/slurmctld.log
        SlurmdLogFile={folder}/log/slurmd.log
        NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=4000 State=UNKNOWN
        PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
    """
    conf.write_text("\n".join(line.strip() for line in lines.strip().splitlines()) + "\n")
    munge = folder / "munge"
    daemons = [
        [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={munge}/sock",
            f"--pid-file={munge}/pid",
            f"--seed-file={munge}/seed",
            f"--log-file={munge}/log",
            "--num-threads=1",
        ],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    running = []
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "SLURM_CONF": str(conf)}
    try:
        for command in daemons:
            running.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            if command[0] == "slurmctld":
                wait_for(controller)
        wait_for(node)
        end = time.monotonic() + 30
        while "idle" not in _sinfo(environment):
            if time.monotonic() > end:
                raise TimeoutError(f"the node does not come up: {_sinfo(environment)}")
            time.sleep(0.2)
        yield conf
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def _sinfo(environment: dict[str, str]) -> str:
    return subprocess.run(
        ["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True, check=False
    ).stdout

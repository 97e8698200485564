"""SSH: jobs on another machine, reached with the OpenSSH client: a GPU box, a board.

The machine needs sshd, Python and the same drupe; the user's own SSH config, keys and known hosts hold.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from drupe.core.config import FileRef
from drupe.core.errors import HostError
from drupe.hosts.config import WorkerConfig
from drupe.hosts.remote import RemoteHost

__all__ = ["SSH", "SSHConfig"]


class SSHConfig(WorkerConfig):
    """Config of SSH."""

    address: str = Field(description="The machine: a name, user@name, or a Host of the SSH config.")
    port: int | None = Field(None, ge=1, le=65535, description="The port; default: the SSH config's, else 22.")
    key_file: FileRef | None = Field(None, description="The private key; default: the SSH config's.")
    config_file: FileRef | None = Field(None, description="Another SSH config file.")
    options: dict[str, str] = Field(default_factory=dict, description="Further options, as `ssh -o` takes them.")
    python: str = Field("python3", description="The Python interpreter there in which drupe is installed.")
    folder: str = Field("~/.cache/drupe/site", description="The folder there for files and jobs.")
    connect_timeout: int = Field(15, ge=1, description="Seconds after which the machine counts as unreachable.")


class SSH(RemoteHost):
    """A machine behind SSH."""

    Config = SSHConfig
    config: SSHConfig

    def command(self) -> Sequence[str]:
        """See RemoteHost."""
        if shutil.which("ssh") is None:
            raise HostError("the program ssh is not installed; install the package openssh-client", retry=False)
        config = self.config
        options = {
            # There is nobody to type a password, and no reason to wait for a dead network.
            "BatchMode": "yes",
            "ConnectTimeout": str(config.connect_timeout),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "LogLevel": "ERROR",
            **config.options,
        }
        command = ["ssh", "-T"]
        command += ["-F", _path(config.config_file)] if config.config_file else []
        command += ["-p", str(config.port)] if config.port else []
        command += ["-i", _path(config.key_file), "-o", "IdentitiesOnly=yes"] if config.key_file else []
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        folder = config.folder
        # The shell there expands a leading ~, which quotes would keep from it.
        quoted = '"$HOME"/' + shlex.quote(folder[2:]) if folder.startswith("~/") else shlex.quote(folder)
        path = self.config.environment.get("PYTHONPATH")
        start = f"env PYTHONPATH={shlex.quote(path)} " if path else ""
        return [*command, "--", config.address, f"{start}{shlex.quote(config.python)} -m drupe.hosts.agent {quoted}"]

    def explain(self, said: str, code: int | None) -> tuple[str, bool]:
        """See RemoteHost."""
        where = f"SSH {self.config.address}"
        last = said.splitlines()[-1] if said else f"the connection ended (exit code {code})"
        python = self.config.python
        for sign, message in (
            ("Permission denied", "the key is not accepted there; check key_file and the user name"),
            ("Host key verification failed", "its host key is not the known one; check it and add it to known_hosts"),
            ("No module named", f"drupe is not installed there; run {python} -m pip install drupe on it"),
            ("not found", f"{python} is no program there; name its interpreter with python"),
            ("No such file or directory", f"{python} is no program there; name its interpreter with python"),
            ("No space left", "there is no space left; make room"),
        ):
            if sign in said and (code in (1, 127, 255) or "space" in sign):
                return f"{where}: {message} ({last})", False
        if code == 255:
            return f"{where}: can't be reached: {last}", True
        return f"{where}: the agent there ended: {last}", True


def _path(text: str) -> str:
    return str(Path(text).expanduser())

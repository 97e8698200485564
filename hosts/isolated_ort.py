"""IsolatedORT: measures in another Python environment of this machine that holds onnxruntime and nothing of Drupe.

Jobs run in warm workers of this environment, so data, tokenizers and metrics need not be installed in the other one;
only the inference session is opened there, by the runtime that the spec names. Olive's system of this name does so too.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from drupe.core.config import FileRef
from drupe.core.errors import Fault, HostError
from drupe.core.hosts import OTHER_INTERPRETER, Events, Host, HostDescription, JobOptions
from drupe.hosts.config import WorkerConfig
from drupe.hosts.interpreter import find_interpreter, interpreter_facts
from drupe.hosts.local import LocalConfig, LocalSystem

__all__ = ["IsolatedORT", "IsolatedORTConfig"]


class IsolatedORTConfig(WorkerConfig):
    """Config of IsolatedORT."""

    python_environment_path: FileRef = Field(
        description="The environment that has onnxruntime: its folder, its bin folder, or its interpreter."
    )
    environment_variables: Mapping[str, str] = Field(
        default_factory=dict, description="Environment variables of the session's process."
    )
    prepend_to_path: list[str] = Field(default_factory=list, description="Folders put before its PATH.")


class IsolatedORT(Host):
    """Another Python environment of this machine, for ONNX Runtime only."""

    Config = IsolatedORTConfig

    def __init__(self, spec: Any, config: IsolatedORTConfig, *, state_dir: Path) -> None:
        super().__init__(spec, config, state_dir=state_dir)
        self._local: LocalSystem | None = None

    def check(self) -> Sequence[Fault]:
        """Return what keeps sessions from being opened there."""
        try:
            self.describe()
        except HostError as error:
            return (Fault("python_environment_path", str(error), kind="needs"),)
        return ()

    def describe(self) -> HostDescription:
        """Describe this machine; versions are those of this environment, ONNX Runtime's those of the other one.

        Raises HostError where there is no ONNX Runtime.
        """
        interpreter = self._interpreter()
        facts = interpreter_facts(interpreter, self.state_dir, self._environment())
        theirs = {name: version for name, version in facts["versions"].items() if _is_onnxruntime(name)}
        if not theirs:
            raise HostError(
                f"onnxruntime is not installed in the environment of {interpreter}; "
                f"install it: {interpreter} -m pip install onnxruntime",
                retry=False,
            )
        here = self._workers().describe()
        ours = {name: version for name, version in here.versions.items() if not _is_onnxruntime(name)}
        # Builds of other names than keys know make other results as well.
        build = ", ".join(f"{name} {version}" for name, version in sorted(theirs.items()))
        return replace(here, versions={**ours, **theirs}, environment=build)

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        """Run a job in a worker of this environment; see Host.run."""
        return self._workers().run(job, options, events, cancelled)

    def close(self) -> None:
        """End the workers, and with them the sessions."""
        if self._local is not None:
            self._local.close()

    def _workers(self) -> LocalSystem:
        if self._local is None:
            told = json.dumps({"python": str(self._interpreter()), "environment": self._environment()})
            shared = {name: getattr(self.config, name) for name in WorkerConfig.model_fields}
            shared["environment"] = {**self.config.environment, OTHER_INTERPRETER: told}
            self._local = LocalSystem(self.spec, LocalConfig.model_construct(**shared), state_dir=self.state_dir)
        return self._local

    def _environment(self) -> dict[str, str]:
        own = dict(self.config.environment_variables)
        path = own.get("PATH", os.environ.get("PATH", ""))
        folders = [*self.config.prepend_to_path, str(self._interpreter().parent), path]
        # What is on this interpreter's path is made for it, not for the other one.
        return {"PYTHONPATH": "", "PYTHONNOUSERSITE": "1", **own, "PATH": os.pathsep.join(folders)}

    @functools.cache  # noqa: B019 - a host lives as long as its run
    def _interpreter(self) -> Path:
        return find_interpreter(Path(self.config.python_environment_path).expanduser())


def _is_onnxruntime(name: str) -> bool:
    """Whether a distribution is a build of ONNX Runtime: onnxruntime, onnxruntime-gpu, a vendor's."""
    return name == "onnxruntime" or (name.startswith("onnxruntime-") and not name.startswith(_OTHERS))


_OTHERS = ("onnxruntime-genai", "onnxruntime-extensions")

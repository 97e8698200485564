"""The runtime `IsolatedORT`: ONNX Runtime of another Python environment, which holds nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drupe.core.errors import EvaluationError
from drupe.core.hosts import OTHER_INTERPRETER
from drupe.core.model import Model
from drupe.core.runtimes import Result
from drupe.plugins.onnx import ort_session
from drupe.plugins.onnx.ort_session import read_message, write_message
from drupe.plugins.onnx.runtime import OnnxRuntime, OnnxSession, cant_load

__all__ = ["IsolatedOnnxRuntime"]

_CLOSE_SECONDS = 5


@dataclass(frozen=True)
class _Side:
    """An input or output of the graph, as an InferenceSession tells it."""

    name: str
    type: str
    shape: list[Any]


class IsolatedOnnxRuntime(OnnxRuntime):
    """Opens graphs in the interpreter that the host names. Options: those of the runtime `onnx`.

    Data, tokenizers and metrics stay here; batches go there and outputs come back. The time of a call is taken there.
    """

    @property
    def session_class(self) -> type[OnnxSession]:
        """See OnnxRuntime.session_class."""
        return _IsolatedSession

    def inference(self, model: Model, request: dict[str, Any], initializers: dict[str, np.ndarray]) -> _Elsewhere:
        """See OnnxRuntime.inference."""
        told = os.environ.get(OTHER_INTERPRETER)
        if told is None:
            raise EvaluationError(
                f"the runtime {self.spec.name} measures on systems of type {self.spec.name}, which name an environment"
            )
        where = json.loads(told)
        elsewhere = _Elsewhere(where["python"], where["environment"])
        try:
            elsewhere.start(request, initializers)
        except EvaluationError as error:
            elsewhere.close()
            raise cant_load(Path(request["path"]), str(error)) from error
        return elsewhere


class _IsolatedSession(OnnxSession):
    """A session whose calls tell how long they took there."""

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """See Session.forward."""
        return Result(super().forward(batch).outputs, device_seconds=self._session.seconds)

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """See OnnxSession.run."""
        values: list[np.ndarray] = self._session.run(feeds, bound=self._bound)
        return values

    def close(self) -> None:
        """See Session.close."""
        if self._session is not None:
            self._session.close()
        super().close()


class _Elsewhere:
    """An inference session in a process of another interpreter. seconds: how long its last run took."""

    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        self.seconds = 0.0
        self._python = python
        self._inputs: list[_Side] = []
        self._outputs: list[_Side] = []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        try:
            self._process = subprocess.Popen(
                [python, str(Path(ort_session.__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **environment},
            )
        except OSError as error:
            raise EvaluationError(f"{python} can't be started: {error.strerror}") from error

    def start(self, request: dict[str, Any], initializers: Mapping[str, np.ndarray]) -> None:
        """Open the model. Raises EvaluationError."""
        told, _ = self._ask(request, initializers)
        self._inputs = [_Side(*side) for side in told["inputs"]]
        self._outputs = [_Side(*side) for side in told["outputs"]]

    def get_inputs(self) -> list[_Side]:
        """Return what the graph takes."""
        return self._inputs

    def get_outputs(self) -> list[_Side]:
        """Return what the graph gives."""
        return self._outputs

    def run(self, feeds: Mapping[str, np.ndarray], *, bound: bool) -> list[np.ndarray]:
        """Return the outputs in order. Raises EvaluationError."""
        told, values = self._ask({"bound": bound}, feeds)
        self.seconds = float(told["seconds"])
        return list(values.values())

    def close(self) -> None:
        """End the process, which ends by itself once nobody can ask it any more."""
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _ask(
        self, message: dict[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            write_message(self._process.stdin, message, dict(arrays))
            told, values = read_message(self._process.stdout)
        except (EOFError, OSError) as error:
            raise EvaluationError(f"the process of {self._python} ended: {self._last_words()}") from error
        if "error" in told:
            raise EvaluationError(str(told["error"]))
        return told, values

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {code}"

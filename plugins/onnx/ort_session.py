"""Makes ONNX Runtime sessions and runs them: here, or as a program of an interpreter that has nothing but onnxruntime.

As a program it opens one model and runs it for the process that started it. Messages come by stdin and go by what was
stdout: a line of JSON, whose "arrays" names the arrays that follow, each as eight bytes of length and numpy's own form.
Nothing of Drupe is imported, since Drupe is not installed there; and the Python may be older than Drupe's.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import IO, Any, Mapping  # noqa: UP035 - as Python 3.8 has it

if __name__ == "__main__":
    # The folder of this file holds modules of Drupe, which are none of that interpreter's.
    sys.path.pop(0)

import numpy as np

__all__ = ["LEVELS", "MODES", "make_session", "read_message", "run_session", "set_session_option", "write_message"]

LEVELS = {"disable": 0, "basic": 1, "extended": 2, "layout": 3, "all": 99}
MODES = ("sequential", "parallel")


def make_session(
    request: dict[str, Any], initializers: dict[str, np.ndarray], settings: Any = None, device: Any = None
) -> Any:
    """Return an InferenceSession.

    request: path, provider, provider_options, stored (session options that the model brings), and what OnnxRuntime
    takes as options; extensions: whether the model uses the operators of onnxruntime-extensions. initializers: weights
    by name that are not in the file. settings: SessionOptions to begin with. device: the OrtEpDevice of a provider
    that a library brought; without one the provider is to be ONNX Runtime's own. Raises ValueError for what can't be
    done, and what ONNX Runtime raises.
    """
    import onnxruntime as ort

    provider = request["provider"]
    if device is None and provider not in ort.get_available_providers():
        raise ValueError(f"this onnxruntime has no {provider}; it has {', '.join(ort.get_available_providers())}")
    if settings is None:
        settings = ort.SessionOptions()
    settings.log_severity_level = 3
    stored = request["stored"]
    for name, value in stored.items():
        set_session_option(settings, name, value)
    if request["threads"] and "intra_op_num_threads" not in stored:
        settings.intra_op_num_threads = int(request["threads"])
    if request["inter_op_threads"]:
        settings.inter_op_num_threads = int(request["inter_op_threads"])
    if request["execution_mode"]:
        settings.execution_mode = ort.ExecutionMode(MODES.index(request["execution_mode"]))
    if request["graph_optimization"]:
        settings.graph_optimization_level = ort.GraphOptimizationLevel(LEVELS[request["graph_optimization"]])
    for name, value in request["session_config"].items():
        settings.add_session_config_entry(str(name), str(value))
    if initializers:
        values = [ort.OrtValue.ortvalue_from_numpy(value) for value in initializers.values()]
        settings.add_external_initializers(list(initializers), values)
    if device is not None:
        settings.add_provider_for_devices([device], request["provider_options"])
        return ort.InferenceSession(request["path"], settings)
    return ort.InferenceSession(request["path"], settings, providers=[(provider, request["provider_options"])])


def set_session_option(settings: Any, name: str, value: Any) -> None:
    """Set a session option by the name that ONNX Runtime or Olive gives it. Raises ValueError for an unknown one."""
    import onnxruntime as ort

    if name == "execution_mode":
        value = ort.ExecutionMode(int(value))
    elif name == "graph_optimization_level":
        value = ort.GraphOptimizationLevel(int(value))
    elif name == "extra_session_config":
        for key, entry in dict(value).items():
            settings.add_session_config_entry(str(key), str(entry))
        return
    if not hasattr(settings, name):
        raise ValueError(f"the model's inference_settings name {name}, which ONNX Runtime does not have")
    setattr(settings, name, value)


def run_session(session: Any, feeds: Mapping[str, np.ndarray], *, bound: bool = False) -> list[Any]:
    """Return a session's outputs, in order. bound: inputs and outputs are bound to the device's memory.

    Texts that are no UTF-8, such as one that ends within a character, are each the replacement character.
    """
    try:
        if not bound:
            return list(session.run(None, dict(feeds)))
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())
    except UnicodeDecodeError:
        return _run_with_broken_text(session, feeds)


def _run_with_broken_text(session: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    given = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
    values = []
    for output in session.run_with_ort_values(None, given):
        try:
            values.append(output.numpy())
        except UnicodeDecodeError:
            values.append(np.full(output.shape(), "\ufffd", dtype=object))
    return values


def write_message(stream: IO[bytes], message: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a message and its arrays; those of texts go as texts of fixed length."""
    stream.write(json.dumps({**message, "arrays": list(arrays)}).encode() + b"\n")
    for value in arrays.values():
        part = io.BytesIO()
        plain = value.astype(np.str_) if value.dtype == object else value
        np.lib.format.write_array(part, plain, allow_pickle=False)
        stream.write(part.getbuffer().nbytes.to_bytes(8, "big"))
        stream.write(part.getbuffer())
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a message and its arrays. Raises EOFError at the end of the stream."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message: dict[str, Any] = json.loads(line)
    arrays = {}
    for name in message.pop("arrays"):
        data = stream.read(int.from_bytes(stream.read(8), "big"))
        value = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        arrays[name] = value.astype(object) if value.dtype.kind == "U" else value
    return message, arrays


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the process that asks is gone."""
    session: Any = None
    names: list[str] = []
    while True:
        try:
            message, arrays = read_message(requests)
        except EOFError:
            return
        try:
            if session is None:
                session = make_session(message, arrays, _with_extensions() if message["extensions"] else None)
                names = [item.name for item in session.get_outputs()]
                sides = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
                told = {side: [[i.name, i.type, i.shape] for i in items] for side, items in sides.items()}
                write_message(answers, told, {})
            else:
                started = time.perf_counter()
                values = run_session(session, arrays, bound=message["bound"])
                seconds = time.perf_counter() - started
                write_message(answers, {"seconds": seconds}, dict(zip(names, values)))  # noqa: B905 - Python 3.9
        except Exception as error:
            write_message(answers, {"error": str(error) or type(error).__name__}, {})


def _with_extensions() -> Any:
    import onnxruntime as ort

    try:
        from onnxruntime_extensions import get_library_path
    except ImportError as error:
        absent = getattr(error, "name", None) == "onnxruntime_extensions"
        why = "is not installed there" if absent else f"can't be imported there: {error}"
        raise ValueError("the model needs onnxruntime-extensions, which " + why) from error
    settings = ort.SessionOptions()
    settings.register_custom_ops_library(get_library_path())
    return settings


if __name__ == "__main__":
    # What libraries print must not get between the answers.
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, _answers)

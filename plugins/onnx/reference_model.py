"""A model that lies at a path, opened by the runtime of its kind, to compare with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from drupe.core.accelerators import Accelerator
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.requirements import installed_version, unmet
from drupe.core.runtimes import Session

__all__ = ["open_model", "reference_model"]


def reference_model(pass_name: str, given: str, context: PassContext, *, field: str = "reference_model_path") -> Model:
    """Return the model at a path, read as an input_model of its kind is read.

    Raises ConfigError where nothing is there, or nothing that is known.
    """
    from drupe.core.registry import get_registry

    path = (context.workflow_dir or Path()) / Path(given).expanduser()
    kind = _kind(path)
    if kind is None:
        there = "is not there" if not path.exists() else "is neither"
        raise ConfigError(
            f"{pass_name}: {field} {given} {there}; expected a Hugging Face folder, a GGUF file, an .onnx file, or a "
            "folder with a graph"
        )
    reader = get_registry().create("drupe_model_kinds", kind)
    folder = context.output_dir.parent / field
    folder.mkdir(parents=True)
    read: Model = reader.load(
        reader.Config(model_path=str(path)), {"model": path}, replace(context, output_dir=folder, report={})
    )
    return read.at(folder)


def _kind(path: Path) -> str | None:
    if path.is_file():
        return {".onnx": "onnx", ".gguf": "hf"}.get(path.suffix)
    if (path / "genai_config.json").is_file():
        return "genai"
    weights = [*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.gguf")]
    if (path / "config.json").is_file() and weights:
        return "hf"
    return "onnx" if path.is_dir() and any(path.rglob("*.onnx")) else None


def open_model(model: Model, accelerator: Accelerator | None, context: PassContext) -> Session:
    """Return a session of the runtime that serves a model; on this machine's CPU where no accelerator is given.

    Raises ConfigError where none serves it, or where it lacks a library.
    """
    from drupe.core.registry import get_registry
    from drupe.core.serving import find_runtime

    registry = get_registry()
    place = accelerator or Accelerator()
    entry = find_runtime(registry, model.kind, place)
    if lacking := unmet(entry.spec.requires, installed_version):
        text, there = next(iter(lacking.items()))
        raise ConfigError(f"the runtime {entry.spec.name} needs {text}; there is {there}; pip install '{text}'")
    runtime: Any = registry.resolve(entry)(entry.spec)
    options = runtime.options(place, {"threads": context.resources.thread_count})
    session: Session = runtime.open(model, place, dict(options))
    session.capabilities = tuple(runtime.capabilities(model))
    return session

"""Models that lie in a local file or folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, Fault
from drupe.core.script_files import script_files
from drupe.core.sources import ModelSource
from drupe.core.stat_cache import path_identity

__all__ = ["LocalSource", "local_path"]

Reference = str | Mapping[str, Any]

_MODEL_SUFFIXES = (".onnx", ".gguf", ".pt", ".pth", ".bin", ".safetensors")


def local_path(reference: Reference, workflow_dir: Path) -> Path:
    """Return the path that a reference names, relative ones taken from the workflow's folder."""
    text = str(reference.get("path", "")) if isinstance(reference, Mapping) else reference
    return workflow_dir / Path(text.removeprefix("file://")).expanduser()


class LocalSource(ModelSource):
    """A path without a scheme, or {"type": "local_file" | "local_folder", "path": …}."""

    def serves(self, reference: Reference, workflow_dir: Path) -> bool:
        """Say yes to what exists, and to what can only be a path: absolute, ./, ~, many slashes, a model's suffix."""
        if isinstance(reference, Mapping) or "://" in reference:
            return True
        if local_path(reference, workflow_dir).exists():
            return True
        return (
            reference.startswith(("/", "./", "../", "~"))
            or reference.endswith(("/", *_MODEL_SUFFIXES))
            or reference.count("/") > 1
        )

    def check(self, reference: Reference, workflow_dir: Path) -> Sequence[Fault]:
        """An absent path is a need: it may still be put there."""
        path = local_path(reference, workflow_dir)
        if path.exists():
            return ()
        return (
            Fault("", f"{path} does not exist", "a model file or folder", "put it there or correct the path", "needs"),
        )

    def identity(self, reference: Reference, options: Mapping[str, Any], workflow_dir: Path) -> Any:
        """Return the digests of the files, from a cache where their stat is unchanged."""
        path = self._existing(reference, workflow_dir)
        files = self.files(reference, workflow_dir)
        if path.suffix == ".onnx":
            return {p.name: path_identity(p) for p in files}
        if len(files) > 1:
            return {p.relative_to(path.parent).as_posix(): path_identity(p) for p in files}
        return path_identity(path)

    def files(self, reference: Reference, workflow_dir: Path) -> Sequence[Path]:
        """Return the path; with what may hold weights beside a graph, as only the graph tells their name; a script with
        what it imports from its own folder."""
        path = self._existing(reference, workflow_dir)
        if path.suffix == ".py":
            return script_files(path)
        if path.suffix != ".onnx":
            return (path,)
        beside = [p for p in sorted(path.parent.iterdir()) if p.is_file() and p != path and _may_hold_weights(p, path)]
        return (path, *beside)

    def fetch(self, reference: Reference, options: Mapping[str, Any], into: Path, context: JobContext) -> Path:
        """Return the path itself: nothing is copied here."""
        return self._existing(reference, context.workflow_dir or Path())

    def _existing(self, reference: Reference, workflow_dir: Path) -> Path:
        path = local_path(reference, workflow_dir)
        if not path.exists():
            raise ConfigError(f"{path} does not exist; expected a model file or folder")
        return path


def _may_hold_weights(file: Path, graph: Path) -> bool:
    return file.name.startswith(graph.stem) or file.name.endswith((".data", "_data", ".bin", ".weight", ".weights"))

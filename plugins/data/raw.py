"""Tensors in raw binary files, a file per input and sample, as device vendors' tools keep them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from drupe.core.config import FileRef, PluginConfig
from drupe.core.context import JobContext
from drupe.core.data import DataConfig, DataContainer, Sample
from drupe.core.errors import ConfigError, Fault
from drupe.core.model import Model
from drupe.core.stat_cache import path_identity
from drupe.plugins.data.options import Dataloader

__all__ = ["RawData", "RawDataConfig", "is_number_type"]


class RawFiles(PluginConfig):
    """Where the files are and how they are read."""

    type: Literal["raw_dataset"] | None = Field(None, description="Olive's name of this component.")
    data_dir: FileRef = Field(description="The folder, relative to the workflow.")
    input_names: list[str] = Field(description="A name per input.")
    input_shapes: list[list[int]] = Field(description="A shape per input, without the batch.")
    input_types: list[str] | None = Field(None, description="A numpy type per input; default: float32.")
    input_dirs: list[str] | None = Field(None, description="A folder per input below data_dir; default: its name.")
    input_suffix: str | None = Field(None, description="The end of the files' names; default: .bin, .raw or .dat.")
    input_order_file: str | None = Field(None, description="A file below data_dir with a file's name a line.")
    annotations_file: str | None = Field(None, description="A .npy or .json file below data_dir with the targets.")

    @model_validator(mode="after")
    def _one_each(self) -> RawFiles:
        if not self.input_names or len(set(self.input_names)) != len(self.input_names):
            raise ValueError(f"input_names {self.input_names}: expected a name at least, each once")
        for name in ("input_shapes", "input_types", "input_dirs"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.input_names):
                raise ValueError(f"{name} has {len(values)} entries; input_names has {len(self.input_names)}")
        for shape in self.input_shapes:
            if any(size < 1 for size in shape):
                raise ValueError(f"input_shapes: {shape}; expected sizes above 0, without the batch")
        for kind in self.input_types or ():
            if not is_number_type(kind):
                raise ValueError(f"input_types: {kind!r} is no numpy type of numbers, such as float32 or int64")
        return self


class RawDataConfig(DataConfig):
    """A data config of type RawDataContainer."""

    load_dataset_config: RawFiles = Field(description="Where the files lie, and what they hold.")
    dataloader_config: Dataloader = Field(default_factory=Dataloader, description="How samples become batches.")


class RawData(DataContainer):
    """Reads tensors from raw files."""

    Config: ClassVar[type[DataConfig]] = RawDataConfig
    version = 1

    def check(self, config: RawDataConfig, workflow_dir: Path) -> Sequence[Fault]:
        """An absent folder is a need."""
        folder = workflow_dir / Path(config.load_dataset_config.data_dir).expanduser()
        if folder.is_dir():
            return ()
        return (Fault("load_dataset_config.data_dir", f"{folder} does not exist", "a folder", "put it there", "needs"),)

    def identity(self, config: RawDataConfig, workflow_dir: Path) -> Any:
        """Return the digests of the files."""
        folder = workflow_dir / Path(config.load_dataset_config.data_dir).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"data_dir: {folder} does not exist")
        return path_identity(folder)

    def load(self, config: RawDataConfig, model: Model | None, context: JobContext) -> Iterable[Sample]:
        """See DataContainer.load. Raises ConfigError for a file of the wrong size, or inputs of different counts."""
        options = config.load_dataset_config
        folder = (context.workflow_dir or Path()) / Path(options.data_dir).expanduser()
        names = _names(folder, options)
        targets = _targets(folder, options, len(names))
        types = options.input_types or ["float32"] * len(options.input_names)
        context.report["accounting"] = {"rows": len(names), "dropped": {}, "origin": folder.name}
        for index, name in enumerate(names):
            inputs: dict[str, np.ndarray | str] = {}
            for place, key, shape, kind in zip(
                _folders(folder, options), options.input_names, options.input_shapes, types, strict=True
            ):
                inputs[key] = _tensor(place / name, shape, kind)
            yield Sample(name, inputs, targets[index] if targets is not None else None, _key(inputs))


def is_number_type(name: str) -> bool:
    """Whether numpy has a type of numbers by that name."""
    try:
        return np.dtype(name).kind in "biuf"
    except TypeError:
        return False


def _folders(folder: Path, options: RawFiles) -> list[Path]:
    return [folder / name for name in options.input_dirs or options.input_names]


def _names(folder: Path, options: RawFiles) -> list[str]:
    if options.input_order_file is not None:
        order = folder / options.input_order_file
        if not order.is_file():
            raise ConfigError(f"input_order_file: {order} does not exist")
        return [line.strip() for line in order.read_text().splitlines() if line.strip()]
    suffixes = (options.input_suffix,) if options.input_suffix else (".bin", ".raw", ".dat")
    found = {
        place: sorted(p.name for p in place.iterdir() if p.name.endswith(suffixes)) if place.is_dir() else []
        for place in _folders(folder, options)
    }
    first, *others = found.values()
    if not first or any(names != first for names in others):
        counts = ", ".join(f"{place.name}: {len(names)}" for place, names in found.items())
        raise ConfigError(f"{folder}: each input needs files ({', '.join(suffixes)}) of the same names; found {counts}")
    return first


def _targets(folder: Path, options: RawFiles, count: int) -> Any:
    if options.annotations_file is None:
        return None
    path = folder / options.annotations_file
    if not path.is_file():
        raise ConfigError(f"annotations_file: {path} does not exist")
    if path.suffix not in (".npy", ".json"):
        raise ConfigError(f"annotations_file: {path.name}; expected a .npy or .json file with a target per sample")
    try:
        found = np.load(path, allow_pickle=False) if path.suffix == ".npy" else json.loads(path.read_text("utf-8"))
    except (ValueError, EOFError, OSError) as error:
        raise ConfigError(f"annotations_file: {path.name} can't be read: {error}") from error
    if not (isinstance(found, list) or (isinstance(found, np.ndarray) and found.ndim)):
        raise ConfigError(f"annotations_file: {path.name} holds {type(found).__name__}; expected a target per sample")
    if len(found) != count:
        raise ConfigError(f"annotations_file: {path.name} has {len(found)} targets; there are {count} samples")
    return found


def _tensor(path: Path, shape: Sequence[int], kind: str) -> np.ndarray:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    wanted = int(np.prod(shape)) * np.dtype(kind).itemsize
    size = path.stat().st_size
    if size != wanted:
        raise ConfigError(f"{path} has {size} bytes; {kind} of shape {list(shape)} takes {wanted}")
    return np.fromfile(path, dtype=kind).reshape(shape)


def _key(inputs: dict[str, np.ndarray | str]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        digest.update(name.encode())
        digest.update(np.asarray(value).tobytes())
    return digest.hexdigest()

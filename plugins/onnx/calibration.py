"""Calibration data: the samples of a data config, or what a user's function yields, as a graph takes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from drupe.core.config import DataRef, FileRef, PassConfig
from drupe.core.context import PassContext
from drupe.core.data import Sample
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.plugins.metrics.sequence_lengths import LENGTHS, sequence_lengths
from drupe.plugins.onnx.graph_pass import GraphPassConfig
from drupe.plugins.onnx.inputs import graph_inputs

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "PAST",
    "CalibrationConfig",
    "DataSourceConfig",
    "calibration_batches",
    "input_batches",
    "input_shapes",
    "reader",
]

Batch = Mapping[str, "np.ndarray"]
GraphInputs = Mapping[str, tuple[tuple[int | str, ...], Any]]

PAST = ("past_key_values", "past_key", "past_value", "past.")
"""How inputs that hold earlier keys and values begin; calibration starts with none."""


class DataSourceConfig(PassConfig):
    """Where inputs for the graph come from."""

    data_config: DataRef | None = Field(None, description="Data config whose training part calibrates.")
    max_calibration_samples: int | None = Field(
        None, ge=1, description="Use the first so many samples only; default: all."
    )
    batch_size: int = Field(1, ge=1, description="Given to dataloader_func; samples of a data config go one by one.")
    user_script: FileRef | None = Field(None, description="A Python file of the user's; needs --allow user-scripts.")
    script_dir: FileRef | None = Field(None, description="A folder that the script imports from.")
    data_dir: FileRef | None = Field(None, description="A folder given to the script's function as data_dir.")
    dataloader_func: str | None = Field(
        None, description="Function of user_script that returns batches, or a calibration reader with get_next."
    )
    dataloader_func_kwargs: Mapping[str, Any] = Field(
        default_factory=dict, description="Further arguments of dataloader_func."
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataSourceConfig:
        if self.dataloader_func is not None and self.user_script is None:
            raise ValueError("dataloader_func names a function of user_script, which is not given; add user_script")
        if self.dataloader_func is not None and self.data_config is not None:
            raise ValueError("give data_config or dataloader_func, not both")
        return self

    @property
    def calibrated(self) -> bool:
        """Whether there is anything to calibrate with."""
        return self.data_config is not None or self.dataloader_func is not None


class CalibrationConfig(DataSourceConfig, GraphPassConfig):
    """Where calibration data come from, and how the graph is written."""


def calibration_batches(
    pass_name: str, proto: Any, model: Model, config: DataSourceConfig, context: PassContext, *, equal: bool
) -> list[Batch]:
    """Return what the graph is fed for calibration, batch by batch.

    equal: pad all to the longest, for methods that collect values of one shape. Raises ConfigError where an input can't
    be had from the data, or has a shape that the graph refuses.
    """
    return input_batches(pass_name, input_shapes(proto, model), model, config, context, equal=equal)


def input_batches(
    pass_name: str, inputs: GraphInputs, model: Model, config: DataSourceConfig, context: PassContext, *, equal: bool
) -> list[Batch]:
    """Return the same for inputs that are known already: name → (shape, numpy dtype)."""
    if config.dataloader_func is not None:
        batches = [_fitted(pass_name, inputs, batch, f"batch {n}") for n, batch in enumerate(_loaded(config, context))]
    else:
        assert config.data_config is not None
        samples = context.data(config.data_config, model=model)[: config.max_calibration_samples]
        length = max((_length(sample) for sample in samples), default=0) if equal else 0
        batches = [
            _fitted(pass_name, inputs, _batch(sample, inputs, length), f"sample {sample.id}") for sample in samples
        ]
    if not batches:
        raise ConfigError(f"{pass_name}: the calibration data are empty")
    context.report["calibration"] = {"batches": len(batches)}
    return batches


def reader(batches: Sequence[Batch], context: PassContext) -> Any:
    """Return onnxruntime's calibration reader over batches; it tells progress and can be cancelled."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.place = 0

        def get_next(self) -> Batch | None:
            if self.place >= len(batches):
                return None
            context.progress(self.place, len(batches), "calibrating")
            self.place += 1
            return batches[self.place - 1]

        def rewind(self) -> None:
            self.place = 0

    return Reader()


def _heads(model: Model) -> Mapping[int, int]:
    """Return the sizes of the axes of keys and values that onnxruntime-genai's graphs only name: axis → size."""
    path = model.folder / "genai_config.json"
    if not path.is_file():
        return {}
    decoder = json.loads(path.read_text(encoding="utf-8"))["model"].get("decoder", {})
    found = {1: decoder.get("num_key_value_heads"), 3: decoder.get("head_size")}
    return {axis: int(size) for axis, size in found.items() if size}


def input_shapes(proto: Any, model: Model) -> dict[str, tuple[tuple[int | str, ...], Any]]:
    """Return name → (shape, numpy dtype) of a graph's inputs; axes of no fixed length by their name."""
    from onnx import helper

    for value in proto.graph.input:
        if not value.type.HasField("tensor_type"):
            kind = str(value.type.WhichOneof("value")).removesuffix("_type")
            raise PassError(f"the graph's input {value.name} is a {kind}; data can be given to tensors only")
    heads = _heads(model)
    return {
        value.name: (
            tuple(
                dim.dim_value
                if dim.HasField("dim_value")
                else heads.get(axis, dim.dim_param)
                if value.name.startswith(PAST)
                else dim.dim_param
                for axis, dim in enumerate(value.type.tensor_type.shape.dim)
            ),
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in graph_inputs(proto.graph)
    }


def _loaded(config: DataSourceConfig, context: PassContext) -> Iterator[Mapping[str, Any]]:
    from drupe.core.user_scripts import call_loader, loader_items, user_function

    assert config.user_script is not None and config.dataloader_func is not None
    function = user_function(config.user_script, config.dataloader_func, context, folder=config.script_dir)
    base = context.workflow_dir
    data_dir = str(base / config.data_dir) if base and config.data_dir else config.data_dir
    loader = call_loader(
        function, config.dataloader_func_kwargs, data_dir=data_dir, batch_size=config.batch_size, framework="ONNX"
    )
    items: Iterable[Any] = iter(loader.get_next, None) if hasattr(loader, "get_next") else loader_items(loader)[0]
    for number, item in enumerate(items):
        if config.max_calibration_samples is not None and number >= config.max_calibration_samples:
            return
        inputs = item[0] if isinstance(item, (tuple, list)) else item
        yield inputs if isinstance(inputs, Mapping) else {"input": inputs}


def _length(sample: Sample) -> int:
    ids = sample.inputs.get("input_ids")
    return len(ids) if ids is not None else 0


def _batch(sample: Sample, inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return one sample as a batch of one, with what follows from the token ids where the sample lacks it."""
    import numpy as np

    if sample.extras.get("whole_batch"):
        return {name: value for name, value in sample.inputs.items() if name in inputs}
    batch: dict[str, Any] = {}
    ids = sample.inputs.get("input_ids")
    for name in inputs:
        value = sample.inputs.get(name)
        if value is None and name in LENGTHS and isinstance(ids, np.ndarray):
            tokens = int(np.asarray(sample.inputs.get("attention_mask", np.ones_like(ids))).sum())
            batch[name] = sequence_lengths(name, [tokens], max(length, len(ids)))
            continue
        if value is None and isinstance(ids, np.ndarray):
            follows = {
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
                "position_ids": np.arange(len(ids), dtype=np.int64),
            }
            value = follows.get(name)
        if value is None or isinstance(value, str):
            continue
        array = np.asarray(value)
        if length and array.ndim == 1 and isinstance(ids, np.ndarray) and len(array) == len(ids):
            array = np.pad(array, (0, length - len(array)))
        batch[name] = array[None]
    return batch


def _fitted(pass_name: str, inputs: Mapping[str, Any], batch: Mapping[str, Any], where: str) -> Batch:
    """Return a batch with the graph's names, types and numbers of axes. Raises ConfigError where it does not fit."""
    import numpy as np

    if set(batch) == {"input"} and "input" not in inputs and len(inputs) == 1:
        batch = {next(iter(inputs)): batch["input"]}
    fitted: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in inputs.items():
        if name not in batch:
            if not name.startswith(PAST):
                raise ConfigError(
                    f"{pass_name}: {where} of the calibration data has no input {name!r}; "
                    f"it has {', '.join(batch) or 'none'}, the graph takes {', '.join(inputs)}"
                )
            fitted[name] = _no_past(shape, dtype)
            continue
        value = batch[name]
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if not shape and array.size == 1:
            # A number for the whole batch, in a list of the one row's.
            array = array.reshape(())
        fits = len(array.shape) == len(shape) and all(
            not isinstance(size, int) or size == there for size, there in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise ConfigError(
                f"{pass_name}: {where} of the calibration data gives {name} the shape {list(array.shape)}; "
                f"the graph takes {list(shape)}"
            )
        fitted[name] = np.asarray(array, dtype=dtype, order="C")
    return fitted


def _no_past(shape: Sequence[int | str], dtype: Any) -> np.ndarray:
    """Return keys or values of no earlier token: (1, heads, 0, size)."""
    import numpy as np

    sizes = [size if isinstance(size, int) else (1 if axis == 0 else 0) for axis, size in enumerate(shape)]
    return np.zeros(sizes, dtype=dtype)

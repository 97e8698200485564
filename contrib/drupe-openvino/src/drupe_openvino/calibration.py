"""Feeds a data config's samples to NNCF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from drupe import ConfigError, Model, PassContext, Sample

from drupe_openvino.libraries import nncf

__all__ = ["calibration_dataset", "model_inputs"]


def calibration_dataset(graph: Any, data: str, model: Model, context: PassContext, limit: int) -> tuple[Any, int]:
    """Return an nncf.Dataset over at most `limit` samples of the data config's training part, and their number."""
    samples = list(context.data(data, model=model, part="train"))[:limit]
    if not samples:
        raise ConfigError(f"the data config {data!r} gives no samples to calibrate with")
    batches = [model_inputs(graph, sample) for sample in samples]
    return nncf().Dataset(batches), len(batches)


def model_inputs(graph: Any, sample: Sample) -> Mapping[str, np.ndarray]:
    """Return a sample as a batch of one for the graph's inputs. Raises ConfigError for an input that it lacks."""
    inputs: dict[str, np.ndarray] = {}
    ids = sample.inputs.get("input_ids")
    for item in graph.inputs:
        name = item.get_any_name()
        value = sample.inputs.get(name)
        if isinstance(ids, np.ndarray) and value is None:
            value = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}.get(name)
        if value is None or isinstance(value, str):
            raise ConfigError(
                f"sample {sample.id} has no input {name!r}, which the model takes; it has: {', '.join(sample.inputs)}"
            )
        inputs[name] = np.asarray(value) if sample.extras.get("whole_batch") else np.asarray(value)[None]
    return inputs

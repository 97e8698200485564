"""The built-in passes under the contract that every pass must keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.core.testing import PassContract, tiny_causal_lm


def texts(count: int = 4, length: int = 12) -> Sequence[Sample]:
    """Samples of text generation, one token a byte."""
    samples = []
    for index in range(count):
        ids = (np.arange(length, dtype=np.int64) * (index + 3)) % 200
        inputs = {"input_ids": ids, "attention_mask": np.ones(length, dtype=np.int64), "labels": ids}
        samples.append(Sample(f"s{index}", inputs, content_key=f"k{index}"))
    return samples


class TestLoRA(PassContract):
    name = "LoRA"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        training = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
        return {"train_data_config": "train", "r": 2, "training_args": training}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        return {"train": texts()}

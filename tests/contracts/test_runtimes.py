"""The built-in runtimes under the contract that every runtime must keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from drupe.core.model import Model
from drupe.core.testing import RuntimeContract, tiny_causal_lm, tiny_encoder


class TestTransformers(RuntimeContract):
    name = "hf"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")

    @pytest.fixture
    def batch(self) -> Mapping[str, np.ndarray]:
        return {name: np.ones((2, 5), dtype=np.int64) for name in ("input_ids", "attention_mask")}


class TestTransformersEncoder(RuntimeContract):
    name = "hf"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_encoder(tmp_path / "model")

    @pytest.fixture
    def batch(self) -> Mapping[str, np.ndarray]:
        return {name: np.ones((2, 5), dtype=np.int64) for name in ("input_ids", "attention_mask")}

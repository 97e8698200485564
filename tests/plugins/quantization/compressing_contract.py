"""What LLMCompressor must do as every pass: test_llm_compressor.py runs it in an environment that has llmcompressor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.testing import PassContract, tiny_causal_lm


class TestLLMCompressor(PassContract):
    name = "LLMCompressor"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model", hidden_size=128, num_attention_heads=4)

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"data_config": "text", "group_size": 32, "nsamples": 4, "seqlen": 16}

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        random = np.random.default_rng(7)
        rows = [random.integers(0, 250, 16) for _ in range(4)]
        return {"text": [Sample(f"s{n}", {"input_ids": row}, content_key=f"k{n}") for n, row in enumerate(rows)]}

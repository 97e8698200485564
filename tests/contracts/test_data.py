"""The built-in data containers under the contract that every container must keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe.core.model import Model
from drupe.core.testing import DataContract, tiny_causal_lm, tiny_encoder


def write_rows(path: Path, count: int, offset: int = 0) -> None:
    rows = [{"text": f"word {n % 5} of {n}", "label": n % 2} for n in range(offset, offset + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class TestTextGeneration(DataContract):
    name = "HuggingfaceContainer"

    @pytest.fixture
    def workflow_dir(self, tmp_path: Path) -> Path:
        write_rows(tmp_path / "rows.jsonl", 12)
        write_rows(tmp_path / "others.jsonl", 12, offset=3)
        return tmp_path

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return self.config_of("rows.jsonl")

    @pytest.fixture
    def changed(self) -> dict[str, Any]:
        return self.config_of("others.jsonl")

    def config_of(self, file: str) -> dict[str, Any]:
        return {
            "load_dataset_config": {"data_name": "json", "data_files": file, "split": "train"},
            "pre_process_data_config": {"text_template": "{text}", "max_seq_len": 32},
        }

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_causal_lm(tmp_path / "model")


class TestClassification(TestTextGeneration):
    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_encoder(tmp_path / "model")

    def config_of(self, file: str) -> dict[str, Any]:
        return {
            "task": "text-classification",
            "load_dataset_config": {"data_name": "json", "data_files": file, "split": "train"},
            "pre_process_data_config": {"input_cols": ["text"], "label_col": "label", "max_length": 32},
        }

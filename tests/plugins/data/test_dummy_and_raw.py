"""Made-up data and raw tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.data.dummy import DummyDataConfig
from drupe.plugins.data.raw import RawDataConfig
from tests.plugins.data.conftest import Loaded

Load = Callable[..., Loaded]

SHAPES = {"input_shapes": [[2, 3, 4], [2, 5]], "input_names": ["pixels", "ids"], "input_types": ["float32", "int64"]}


def test_arrays_by_shape_are_repeatable(load: Load) -> None:
    config = {"load_dataset_config": {**SHAPES, "max_samples": 3}}
    samples, report = load(config, type="DummyDataContainer", seed=1)
    assert len(samples) == 6
    assert samples[0].inputs["pixels"].shape == (3, 4)
    assert samples[0].inputs["pixels"].dtype == np.float32
    assert samples[0].inputs["ids"].dtype == np.int64
    again, _ = load(config, type="DummyDataContainer", seed=1)
    assert all((a.inputs["pixels"] == b.inputs["pixels"]).all() for a, b in zip(samples, again, strict=True))
    other, _ = load(config, type="DummyDataContainer", seed=2)
    assert (samples[0].inputs["pixels"] != other[0].inputs["pixels"]).any()
    assert report["different"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_names": ["a"]}, "input_names has 1 entries; input_shapes has 2"),
        ({"input_types": ["float32", "int65"]}, "'int65' is no numpy type"),
        ({"input_shapes": [[2, 3], [1, 5]]}, "the first axis of all is the batch"),
    ],
)
def test_shapes_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DummyDataConfig.model_validate({"load_dataset_config": {**SHAPES, **changes}})


def test_tokens_are_below_the_models_vocabulary(load: Load) -> None:
    options = {"load_dataset_config": {"seq_len": 500, "max_samples": 4}}
    samples, _ = load(options, type="TransformersDummyDataContainer")
    ids = np.concatenate([s.inputs["input_ids"] for s in samples])
    assert ids.shape == (2000,)
    assert 200 < ids.max() < 264
    assert (samples[0].inputs["attention_mask"] == 1).all()


def graph(folder: Path, **config: Any) -> Model:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"")
    told = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps({**told, "vocab_size": 50, **config}))
    return Model.from_dir("onnx", folder, {"task": "text-generation"})


def test_a_prompt_and_a_next_token_have_what_graphs_with_keys_and_values_take(load: Load, tmp_path: Path) -> None:
    model = graph(tmp_path / "graph")
    (prompt, *_), _ = load(
        {"load_dataset_config": {"seq_len": 5}}, type="TransformersPromptDummyDataContainer", model=model
    )
    assert prompt.inputs["input_ids"].shape == (5,) == prompt.inputs["attention_mask"].shape
    assert prompt.inputs["position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert prompt.inputs["past_key_values.1.value"].shape == (2, 0, 8)
    options = {"past_seq_len": 7, "use_fp16": True, "ort_past_key_name": "past_key_<id>"}
    (token, *_), _ = load({"load_dataset_config": options}, type="TransformersTokenDummyDataContainer", model=model)
    assert token.inputs["input_ids"].shape == (1,)
    assert token.inputs["attention_mask"].shape == (8,)
    assert token.inputs["position_ids"].tolist() == [7]
    assert token.inputs["past_key_0"].shape == (2, 7, 8)
    assert token.inputs["past_key_0"].dtype == np.float16


@pytest.mark.parametrize(
    ("type_", "options", "message"),
    [
        ("Prompt", {"past_seq_len": 3}, "use TransformersTokenDummyDataContainer"),
        ("Token", {"past_seq_len": 9, "max_seq_len": 9}, "pass max_seq_len 9"),
        ("Token", {"ort_past_key_name": "past"}, "no <id>"),
    ],
)
def test_token_options_that_do_not_go_together(type_: str, options: dict[str, Any], message: str, load: Load) -> None:
    with pytest.raises(ValidationError, match=message):
        load({"load_dataset_config": options}, type=f"Transformers{type_}DummyDataContainer")


@pytest.fixture
def raw_folder(tmp_path: Path) -> Path:
    for name in ("image", "mask"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    for index in range(3):
        np.full((2, 2), index, dtype=np.float32).tofile(tmp_path / "raw" / "image" / f"{index}.bin")
        np.full((3,), index, dtype=np.int8).tofile(tmp_path / "raw" / "mask" / f"{index}.bin")
    (tmp_path / "raw" / "labels.json").write_text(json.dumps([5, 6, 7]))
    return tmp_path / "raw"


RAW = {
    "data_dir": "raw",
    "input_names": ["image", "mask"],
    "input_shapes": [[2, 2], [3]],
    "input_types": ["float32", "int8"],
    "annotations_file": "labels.json",
}


def test_raw_files_become_samples(load: Load, raw_folder: Path) -> None:
    samples, _ = load({"load_dataset_config": RAW}, type="RawDataContainer")
    assert [(s.id, s.target) for s in samples] == [("0.bin", 5), ("1.bin", 6), ("2.bin", 7)]
    assert samples[2].inputs["image"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert samples[2].inputs["mask"].dtype == np.int8


def test_raw_files_of_the_wrong_size_or_count_are_told(load: Load, raw_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.bin has 16 bytes; float32 of shape \[2, 3\] takes 24"):
        load({"load_dataset_config": {**RAW, "input_shapes": [[2, 3], [3]]}}, type="RawDataContainer")
    (raw_folder / "mask" / "2.bin").unlink()
    with pytest.raises(ConfigError, match="image: 3, mask: 2"):
        load({"load_dataset_config": RAW}, type="RawDataContainer")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b"[0,1", "annotations_file: t.json can't be read"),
        ("t.json", b'{"a": 1}', "annotations_file: t.json holds dict; expected a target per sample"),
        ("t.npy", b"nothing", "annotations_file: t.npy can't be read"),
        ("t.txt", b"0", "annotations_file: t.txt; expected a .npy or .json file"),
    ],
)
def test_targets_that_can_not_be_read_are_told(
    load: Load, raw_folder: Path, name: str, content: bytes, message: str
) -> None:
    (raw_folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load({"load_dataset_config": {**RAW, "annotations_file": name}}, type="RawDataContainer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_names": []}, "expected a name at least, each once"),
        ({"input_names": ["x", "x"]}, "expected a name at least, each once"),
        ({"input_shapes": [[-1, 3]]}, r"input_shapes: \[-1, 3\]; expected sizes above 0"),
        ({"input_types": ["float33"]}, "'float33' is no numpy type of numbers"),
        ({"input_types": ["object"]}, "'object' is no numpy type of numbers"),
    ],
)
def test_shapes_and_types_that_no_file_has(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RawDataConfig.model_validate(
            {"load_dataset_config": {"data_dir": ".", "input_names": ["x"], "input_shapes": [[1]], **options}}
        )


@pytest.mark.parametrize("shapes", [[[0, 2]], [[1, -2]]])
def test_made_up_arrays_have_sizes(shapes: list[list[int]]) -> None:
    with pytest.raises(ValidationError, match="expected a batch of at least 1, and no size below 0"):
        DummyDataConfig.model_validate({"load_dataset_config": {"input_shapes": shapes}})

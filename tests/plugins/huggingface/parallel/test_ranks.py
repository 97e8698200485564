"""Models on ranks, as metrics and input models see them: sessions, what is told of damage, and the folder's reading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.core.runtimes import GenerateOptions
from drupe.plugins.huggingface.parallel.kind import DistributedHfConfig
from drupe.testing import RuntimeContract, make_context
from tests.plugins.onnx.graphs import CPU


class TestDistributedHfRuntime(RuntimeContract):
    name = "distributed_hf"

    @pytest.fixture
    def model(self, halves: Model) -> Model:
        return halves


def open_ranks(model: Model, **options: Any) -> Any:
    return get_registry().create("drupe_runtimes", "distributed_hf").open(model, CPU, {"threads": 1, **options})


def test_ranks_generate_and_score_as_their_source_does(tiny: Model, halves: Model) -> None:
    options = GenerateOptions(max_new_tokens=6)
    hf = get_registry().create("drupe_runtimes", "hf")
    with hf.open(tiny, CPU, {"threads": 1}) as source, open_ranks(halves) as ranks:
        assert ranks.generate("abc", options).outputs["text"] == source.generate("abc", options).outputs["text"]
        ids = source.tokenize("to be split")
        assert list(ranks.tokenize("to be split")) == list(ids)
        found, wanted = (one.score(ids, ids).outputs["logprobs"] for one in (ranks, source))
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        warm = GenerateOptions(max_new_tokens=6, temperature=1.0, seed=3)
        assert ranks.generate("abc", warm).outputs["text"] == source.generate("abc", warm).outputs["text"]
        assert ranks.bytes_by_rank == (182528, 182528)
        assert ranks.framework == source.framework == "PyTorch"


def test_a_wrong_input_leaves_the_session_usable(halves: Model) -> None:
    with open_ranks(halves) as ranks:
        with pytest.raises(EvaluationError, match="takes no input 'pixels'; it takes: input_ids"):
            ranks.forward({"pixels": np.ones((1, 2), np.int64)})
        assert ranks.forward({"input_ids": np.ones((1, 2), np.int64)}).outputs["logits"].shape == (1, 2, 264)


def test_a_rank_that_ends_is_told_and_ends_the_others(halves: Model) -> None:
    before = set(psutil.Process().children(recursive=True))
    with open_ranks(halves) as ranks:
        mine = [one for one in psutil.Process().children(recursive=True) if one not in before]
        mine.sort(key=lambda process: process.create_time())
        mine[-1].kill()
        with pytest.raises(EvaluationError, match="a rank ended in the middle of its work"):
            ranks.forward({"input_ids": np.ones((1, 2), np.int64)})
    assert psutil.wait_procs(mine[-2:], timeout=10)[1] == []


def test_weights_of_another_number_of_rows_are_named(halves: Model, tmp_path: Path) -> None:
    shutil.copytree(halves.folder, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 64}))
    damaged = Model.from_dir("distributed_hf", tmp_path / "m", halves.attributes)
    with pytest.raises(EvaluationError, match=r"down_proj.weight has the shape \(64, 64\); expected \(64, 32\)"):
        open_ranks(damaged)


def test_gpus_that_are_not_there_are_told(halves: Model) -> None:
    runtime = get_registry().create("drupe_runtimes", "distributed_hf")
    with pytest.raises(EvaluationError, match="split over 2 GPUs, and PyTorch sees 0 here"):
        runtime.open(halves, Accelerator("gpu"), {})


def test_ranks_are_read_as_an_input_model(halves: Model, tmp_path: Path) -> None:
    kind = get_registry().create("drupe_model_kinds", "DistributedHfModel")

    def read(folder: Path, **values: Any) -> Model:
        config = DistributedHfConfig(model_path=str(folder), **values)
        out = tmp_path / f"read{len(list(tmp_path.iterdir()))}"
        loaded: Model = kind.load(config, {"model": folder}, make_context(out))
        assert kind.info(config, tmp_path).attributes == loaded.attributes
        return loaded

    found = read(halves.folder, num_ranks=2, load_kwargs={"torch_dtype": "bfloat16"})
    assert found.files == Model.from_dir("distributed_hf", halves.folder).files
    assert found.attributes["ranks"] == ["model_00", "model_01"] and found.attributes["task"] == "text-generation"
    assert found.attributes["load_kwargs"] == {"dtype": "bfloat16"}
    with open_ranks(found) as ranks:
        assert ranks.bytes_by_rank == (91264, 91264)
    with pytest.raises(ConfigError, match=r"num_ranks is 3, and .* holds 2 ranks"):
        read(halves.folder, num_ranks=3)
    with pytest.raises(ConfigError, match=r"model_name_pattern 'part_\{\}' means part_0, and the ranks of"):
        read(halves.folder, model_name_pattern="part_{}")
    with pytest.raises(ConfigError, match=r"expected tensor_parallel.json, as PyTorchTensorParallel writes it; there"):
        read(halves.folder / "model_00")
    shutil.copytree(halves.folder, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "model_01")
    with pytest.raises(ConfigError, match=r"has no model.safetensors in model_01; all ranks are needed"):
        read(tmp_path / "half")
    (tmp_path / "half" / "tensor_parallel.json").write_text('{"world_size": 2}')
    with pytest.raises(ConfigError, match=r"tensor_parallel.json is damaged: KeyError: 'ranks'"):
        read(tmp_path / "half")
    with pytest.raises(ValidationError, match="'trust_remote_code' has no meaning for a model on ranks"):
        DistributedHfConfig(model_path="m", load_kwargs={"trust_remote_code": True})
    with pytest.raises(ValidationError, match=r"unknown key 'input_shape'.*did you mean 'input_shapes'"):
        DistributedHfConfig(model_path="m", io_config={"input_names": ["input_ids"], "input_shape": [[1, 2]]})

"""PyTorchTensorParallel and MergeTensorParallel: ranks that together say what their source says, and the way back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.parallel import tensor_parallel
from drupe.plugins.huggingface.parallel.tensor_parallel import PyTorchTensorParallelConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm
from tests.plugins.huggingface.parallel.conftest import decoder, python_blocks
from tests.plugins.onnx.graphs import CPU, run_pass

IDS = np.random.default_rng(5).integers(0, 256, (2, 9))


class TestPyTorchTensorParallel(PassContract):
    name = "PyTorchTensorParallel"

    @pytest.fixture
    def model(self, tiny: Model) -> Model:
        return tiny


class TestMergeTensorParallel(PassContract):
    name = "MergeTensorParallel"

    @pytest.fixture
    def model(self, halves: Model) -> Model:
        return halves


def by_transformers(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(IDS)).logits.numpy()


def by_ranks(model: Model) -> Any:
    runtime = get_registry().create("drupe_runtimes", "distributed_hf")
    with runtime.open(model, CPU, {"threads": 1}) as session:
        return session.forward({"input_ids": IDS}).outputs["logits"]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    ("architecture", "config", "world_size"),
    [
        # Columns, then rows; embedding and head are one table, or two of which the last rank has a row less.
        ("LlamaForCausalLM", {"tie_word_embeddings": True}, 2),
        ("Qwen2ForCausalLM", {"vocab_size": 263}, 2),
        # Two heads of keys and values for four ranks: each is there twice.
        ("Qwen2ForCausalLM", {}, 4),
        # Biases behind the sum over ranks; one norm for attention and MLP.
        ("PhiForCausalLM", {}, 2),
        # Fused layers: what the ranks have is gathered, and cut again before the next.
        ("Phi3ForCausalLM", {}, 2),
        # Norms over heads that are whole on every rank.
        ("Qwen3ForCausalLM", {"head_dim": 16}, 2),
        # A head that is cut and an embedding that is not can't be one table any more.
        ("GPTNeoXForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": None}, 2),
        # Experts: gate and up are packed in one tensor, each of which is cut.
        ("MixtralForCausalLM", {"num_local_experts": 4}, 2),
    ],
)
def test_ranks_say_what_their_source_says_and_give_it_back(
    tmp_path: Path, architecture: str, config: dict[str, Any], world_size: int
) -> None:
    source = decoder(tmp_path / "m", architecture, **config)
    context = make_context(tmp_path / "job", accelerator=CPU)
    ranks = run_pass("PyTorchTensorParallel", source, tmp_path, context=context, world_size=world_size)
    assert ranks.kind == "distributed_hf" and ranks.attributes["world_size"] == world_size
    wanted = by_transformers(source.folder)
    np.testing.assert_allclose(by_ranks(ranks), wanted, atol=1e-4 * np.abs(wanted).max())
    before, after = tensors(source.folder), tensors(run_pass("MergeTensorParallel", ranks, tmp_path / "back").folder)
    # The head that got a table of its own keeps it.
    assert set(before) <= set(after)
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)
    np.testing.assert_allclose(by_transformers(tmp_path / "back" / "outputs"), wanted, atol=1e-5)


def test_a_rank_has_its_share_of_the_weights(tiny: Model, halves: Model) -> None:
    whole = tensors(tiny.folder)
    for rank in ("model_00", "model_01"):
        part = tensors(halves.folder / rank)
        assert set(part) == set(whole)
        cut = {name for name in whole if part[name].shape != whole[name].shape}
        assert cut == {name for name in whole if "norm" not in name}
        assert sum(t.nbytes for t in part.values()) < 0.51 * sum(t.nbytes for t in whole.values())
    layer = "model.layers.0.self_attn"
    first, second = (tensors(halves.folder / rank) for rank in ("model_00", "model_01"))
    for name, axis in ((f"{layer}.q_proj.weight", 0), (f"{layer}.o_proj.weight", 1)):
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]], axis), whole[name])


def test_weights_are_written_in_the_type_that_was_asked_for(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m")
    asked = Model.from_dir("hf", source.folder, {**source.attributes, "load_kwargs": {"dtype": "bfloat16"}})
    context = make_context(tmp_path / "job", accelerator=CPU)
    ranks = run_pass("PyTorchTensorParallel", asked, tmp_path, context=context, parallel_jobs=0)
    assert ranks.attributes["dtype"] == "bfloat16" and "load_kwargs" not in ranks.attributes
    assert json.loads((ranks.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert context.report["tensor_parallel"]["bytes_by_rank"] == [91264, 91264]


SCRIPT = """
class Undivided(Halves):
    divided = None

class Wrong(Halves):
    def tp_plan(self, config):
        return {**super().tp_plan(config), "model.layers.*.mlp": "all_reduce"}

class Uneven(Halves):
    def divided(self, config):
        return {"model.layers.*.self_attn": ["layer_idx", "num_heads"]}

class Nowhere(Halves):
    def divided(self, config):
        return {"model.layers.*.attn": ["num_heads"]}

class Unknown:
    def tp_plan(self, config):
        return {"model.layers.*.self_attn.qq_proj": "colwise"}

class Style:
    def tp_plan(self, config):
        return {"model.layers.*.self_attn.q_proj": "sideways"}

class Fails:
    def tp_plan(self, config):
        return config["no_such_key"]

class Other:
    pass
"""


def test_a_plan_of_ones_own_splits_what_transformers_has_no_plan_for(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m", "StableLmForCausalLM")
    (tmp_path / "plans.py").write_text(python_blocks()[0] + SCRIPT)

    def split(name: str | None, job: str, allow: frozenset[str] = frozenset({"user-scripts"})) -> Model:
        context = make_context(tmp_path / job, accelerator=CPU, allow=allow, workflow_dir=tmp_path)
        named = {"user_script": "plans.py", "class_name": name} if name else {}
        return run_pass("PyTorchTensorParallel", source, tmp_path, context=context, **named)

    wanted = by_transformers(source.folder)
    np.testing.assert_allclose(by_ranks(split("Halves", "1")), wanted, atol=1e-4 * np.abs(wanted).max())
    with pytest.raises(ConfigError, match="has no tensor-parallel plan for stablelm; name a class of yours"):
        split(None, "2")
    with pytest.raises(ConfigError, match="add --allow user-scripts"):
        split("Halves", "3", frozenset())
    with pytest.raises(PassError, match=r"differ from their source by .* of logits; the plan does not fit this model"):
        split("Wrong", "4")
    with pytest.raises(PassError, match=r"the ranks can't be run together: RuntimeError: shape"):
        split("Undivided", "9")
    with pytest.raises(ConfigError, match=r"layer_idx of model.layers.1.self_attn, .* is 1, which does not divide"):
        split("Uneven", "10")
    with pytest.raises(ConfigError, match=r"numbers of model.layers.\*.attn are to be divided, which StableLmFor"):
        split("Nowhere", "11")
    with pytest.raises(ConfigError, match=r"the plan names model.layers.\*.self_attn.qq_proj, which StableLmFor"):
        split("Unknown", "5")
    with pytest.raises(ConfigError, match=r"has the style 'sideways'; transformers has: .*colwise.*rowwise"):
        split("Style", "6")
    with pytest.raises(PassError, match=r"Fails.tp_plan \(plans.py, line \d+\) raised KeyError: 'no_such_key'"):
        split("Fails", "7")
    (tmp_path / "plans.py").write_text("from olive.passes.pytorch.tensor_parallel import TensorParallel")
    with pytest.raises(ConfigError, match="a class on Olive's is not run: leave user_script and class_name out"):
        split("Halves", "12")
    (tmp_path / "plans.py").write_text(SCRIPT[SCRIPT.index("class Other") :])
    with pytest.raises(ConfigError, match=r"Other of plans.py has no method tp_plan\(config\)"):
        split("Other", "8")


def test_of_a_large_model_a_few_layers_are_tried_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "_CHECKED", 10_000)
    source = decoder(tmp_path / "m", "Qwen2ForCausalLM", num_hidden_layers=6)
    assert len(json.loads((source.folder / "config.json").read_text())["layer_types"]) == 6
    context = make_context(tmp_path / "job", accelerator=CPU)
    ranks = run_pass("PyTorchTensorParallel", source, tmp_path, context=context, world_size=4)
    tried = context.report["tensor_parallel_tried"]
    assert tried["layers"] == 4 and tried["largest_difference"] < 1e-4
    assert "largest_difference" not in context.report["tensor_parallel"]
    assert list(context.checkpoint_dir.iterdir()) == []
    wanted = by_transformers(source.folder)
    np.testing.assert_allclose(by_ranks(ranks), wanted, atol=1e-4 * np.abs(wanted).max())
    (tmp_path / "plans.py").write_text(python_blocks()[0] + SCRIPT)
    other = decoder(tmp_path / "o", "StableLmForCausalLM")
    context = make_context(
        tmp_path / "wrong", accelerator=CPU, allow=frozenset({"user-scripts"}), workflow_dir=tmp_path
    )
    with pytest.raises(PassError, match=r"differ from .* \(seen on 4 of its layers with random weights\)"):
        run_pass("PyTorchTensorParallel", other, tmp_path, context=context, user_script="plans.py", class_name="Wrong")
    assert list(context.output_dir.iterdir()) == []


def refused(known: dict[str, Any], **config: Any) -> str:
    subject = get_registry().create("drupe_passes", "PyTorchTensorParallel")
    with pytest.raises(ConfigError) as raised:
        subject.plan(ModelInfo("hf", known), PyTorchTensorParallelConfig.model_validate(config), CPU)
    return str(raised.value)


def test_what_cant_be_split_is_refused_before_work() -> None:
    smollm2 = {"num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
    told = refused({"model_type": "llama", "sizes": smollm2}, world_size=2)
    assert "world_size 2: 9 attention heads do not divide by 2; world_size may be 3" in told
    told = refused({"model_type": "llama", "sizes": {**smollm2, "num_attention_heads": 12}}, world_size=4)
    assert "3 heads of keys and values neither divide by 4 nor 4 by 3; world_size may be 3, 6, 12" in told
    told = refused({"model_type": "phi3", "sizes": {"intermediate_size": 30}}, world_size=4)
    assert "intermediate_size 30 does not divide by 4" in told
    assert "no tensor-parallel plan for gpt2" in refused({"model_type": "gpt2"})
    assert "the model is quantized (gptq)" in refused({"quantization": "gptq"})
    assert "put MergeAdapterWeights before it" in refused({"adapter": "adapter"})
    assert "brings code of its own" in refused({"remote_code": True})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"world_size": 1}, "greater than or equal to 2"),
        ({"user_script": "plans.py"}, "no class_name"),
        ({"script_dir": "code"}, "script_dir is for a user_script"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PyTorchTensorParallelConfig.model_validate(values)


def test_a_class_without_a_script_is_told() -> None:
    """As Olive's files have it, where the class is named and not looked at."""
    notices: list[str] = []
    values = {"class_name": "LlamaPyTorchTensorParallel", "world_size": 4}
    PyTorchTensorParallelConfig.model_validate(values, context={"notices": notices})
    assert notices == [
        "class_name has no effect: no user_script is given, so transformers' own plan for the architecture is taken"
    ]


def test_an_encoder_and_decoder_is_refused_by_its_config(tiny: Model, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny.folder, folder)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "is_encoder_decoder": True}))
    with pytest.raises(ConfigError, match="this one has encoder and decoder"):
        run_pass("PyTorchTensorParallel", Model.from_dir("hf", folder, dict(tiny.attributes)), tmp_path / "job")

"""OrtTransformersOptimization finds out what a model is, or says what to write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.pytorch_model import PytorchConfig
from drupe.plugins.onnx.diffusion_fusions import single_numbers
from drupe.testing import make_context, tiny_encoder, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, answers, kinds, run_pass

SCRIPT = """
import torch
from transformers import BertConfig, BertModel

class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=100)
        self.bert = BertModel(BertConfig(**shape, attn_implementation="eager"))
        self.head = torch.nn.Linear(32, 3)

    def forward(self, ids, mask):
        return self.head(self.bert(input_ids=ids, attention_mask=mask).pooler_output)

def load(path):
    torch.manual_seed(0)
    return Wrapped()
"""
TOLD = {
    "input_names": ["ids", "mask"],
    "input_shapes": [[2, 9], [2, 9]],
    "input_types": ["int64", "int64"],
    "dynamic_axes": {"ids": {"0": "batch", "1": "length"}, "mask": {"0": "batch", "1": "length"}},
}
TRACED = {"use_dynamo_exporter": False, "target_opset": 17}


def batch() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(5, 90, (3, 12))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    return {"ids": ids, "mask": mask}


def test_a_module_with_a_bert_inside_is_fused_without_being_told(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(SCRIPT)
    context = make_context(tmp_path / "import", accelerator=CPU, allow={"user-scripts"})
    kind = get_registry().create("drupe_model_kinds", "pytorch")
    config = PytorchConfig.model_validate({"model_script": "s.py", "model_loader": "load", "io_config": TOLD})
    source = kind.load(config, {"script": tmp_path / "s.py"}, context).at(context.output_dir)
    consent = make_context(tmp_path / "graph", accelerator=CPU, allow={"user-scripts"})
    graph = run_pass("OnnxConversion", source, tmp_path / "graph", context=consent, **TRACED)
    fused = run_pass("OrtTransformersOptimization", graph, tmp_path / "fused")
    assert kinds(fused)["Attention"] == 2
    np.testing.assert_allclose(answers(fused, batch())[0], answers(graph, batch())[0], atol=1e-5)


def test_a_graph_that_reads_two_segments_is_one_of_berts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = run_pass("OnnxConversion", tiny_encoder(tmp_path / "model"), tmp_path / "graph", **TRACED)
    bare = Model("onnx", {"model.onnx": graph.files["model.onnx"]}, {"onnx_file": "model.onnx"}, graph.folder)
    (graph.folder / "config.json").unlink()
    fused = run_pass("OrtTransformersOptimization", bare, tmp_path / "fused")
    assert kinds(fused)["SkipLayerNormalization"] == 4
    assert "give num_heads and hidden_size" in caplog.text
    told = run_pass("OrtTransformersOptimization", bare, tmp_path / "told", num_heads=2, hidden_size=32)
    assert kinds(told)["Attention"] == 2


def test_what_to_write_is_said_where_nothing_tells(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'give model_type, such as "model_type": "bert" .*"only_onnxruntime": true'):
        run_pass("OrtTransformersOptimization", tiny_onnx_mlp(tmp_path / "model"), tmp_path / "job")


def test_a_type_without_fusions_is_refused_before_work_and_others_go_by_their_own_names() -> None:
    subject = get_registry().create("drupe_passes", "OrtTransformersOptimization")
    told = ModelInfo("onnx", {"model_attributes": {"model_type": "convnext"}})
    with pytest.raises(ConfigError, match="no fusions are known for a model of type convnext; give model_type"):
        subject.plan(told, type(subject).Config(), CPU)
    for config in ({"model_type": "roberta"}, {"only_onnxruntime": True}, {"model_type": ""}):
        subject.plan(told, type(subject).Config.model_validate(config), CPU)


def test_a_list_of_heads_for_stages_is_left_to_the_graph(tmp_path: Path) -> None:
    import torch
    from transformers import SwinConfig, SwinForImageClassification

    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
    torch.manual_seed(0)
    SwinForImageClassification(SwinConfig(**sizes, window_size=2)).save_pretrained(tmp_path / "model")
    source = Model.from_dir("hf", tmp_path / "model", {"task": "image-classification"})
    graph = run_pass("OnnxConversion", source, tmp_path / "graph", **TRACED)
    fused = run_pass("OrtTransformersOptimization", graph, tmp_path / "fused")
    pixels = {"pixel_values": np.random.default_rng(0).random((3, 3, 16, 16), np.float32)}
    np.testing.assert_allclose(answers(fused, pixels)[0], answers(graph, pixels)[0], atol=1e-4)


@pytest.mark.parametrize(("family", "fusion"), [("vae", "enable_group_norm"), ("unet", "enable_packed_qkv")])
def test_fusions_that_a_cpu_has_no_kernels_for_are_refused_before_work(family: str, fusion: str) -> None:
    made = get_registry().create("drupe_passes", "OrtTransformersOptimization")
    options = {"model_type": family, "optimization_options": {fusion: True}}
    with pytest.raises(ConfigError, match=rf"optimization_options\.{fusion}.*GPUs only; set it to false for CPUExecut"):
        made.plan(ModelInfo("onnx", {}), made.Config.model_validate(options), CPU)
    made.plan(ModelInfo("onnx", {}), made.Config.model_validate(options), Accelerator("gpu", "CUDAExecutionProvider"))


DIFFUSION = """
import torch

class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.GroupNorm(4, 32)
        self.conv = torch.nn.Conv2d(32, 8, 3, padding=1)

    def forward(self, sample):
        return self.conv(torch.nn.functional.silu(self.norm(sample)))

def load(path):
    torch.manual_seed(0)
    return Part()
"""


def test_a_part_of_a_vae_keeps_the_norms_that_a_cpu_can_t_run_fused(tmp_path: Path) -> None:
    told = {"input_names": ["sample"], "input_shapes": [[2, 32, 4, 4]], "dynamic_axes": {"sample": {"0": "batch"}}}
    (tmp_path / "s.py").write_text(DIFFUSION)
    context = make_context(tmp_path / "import", accelerator=CPU, allow={"user-scripts"})
    config = PytorchConfig.model_validate({"model_script": "s.py", "model_loader": "load", "io_config": told})
    kind = get_registry().create("drupe_model_kinds", "pytorch")
    source = kind.load(config, {"script": tmp_path / "s.py"}, context).at(context.output_dir)
    consent = make_context(tmp_path / "graph", accelerator=CPU, allow={"user-scripts"})
    graph = run_pass("OnnxConversion", source, tmp_path / "graph", context=consent, **TRACED)
    made = run_pass("OrtTransformersOptimization", graph, tmp_path / "made", model_type="vae", opt_level=0)
    feed = {"sample": np.random.default_rng(0).standard_normal((3, 32, 4, 4)).astype(np.float32)}
    assert np.allclose(answers(made, feed)[0], answers(graph, feed)[0], atol=1e-4)


def test_onnxruntime_reads_the_heads_of_a_unet_s_attention_under_any_numpy() -> None:
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.transformers.fusion_attention_unet import FusionAttentionUnet, OnnxModel

    values = {"zero": 0, "heads": 4, "size": 8}
    nodes = [
        helper.make_node("Concat", ["zero", "zero", "heads", "size"], ["shape"], "concat", axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([number]), name) for name, number in values.items()],
    )
    fusion = FusionAttentionUnet(OnnxModel(helper.make_model(graph)), 32, 0, False, False, False)
    with single_numbers():
        assert fusion.get_num_heads(nodes[1], is_torch2=True) == 4

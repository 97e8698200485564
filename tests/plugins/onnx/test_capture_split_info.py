"""CaptureSplitInfo finds the stacks of blocks of any network or graph, and the pieces give what the whole gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.pytorch_model import PytorchConfig
from drupe.plugins.onnx.stacks import blocks_of
from drupe.testing import make_context
from tests.plugins.onnx.graphs import CPU, answers, run_pass, saved
from tests.plugins.onnx.test_split_model import forward

SCRIPT = """
import torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8))

    def forward(self, x):
        return x + self.inside(x)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 3)
        self.first = torch.nn.Linear(4, 8)
        self.units = torch.nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x):
        x = self.first(x)
        for unit in self.units:
            x = unit(x)
        return self.head(x)

def net(path):
    torch.manual_seed(0)
    return Net().eval()
"""
NAMED = """<ir_version: 10, opset_import: ["" : 17]>
g (float[n, 4] x) => (float[n, 4] y)
{
  two = Constant <value = float {2}> ()
  ["net/start/Mul"] a = Mul (x, two)
  ["net/layer_0/a/Add"] b = Add (a, two)
  ["net/layer_0/b/Mul"] c = Mul (b, two)
  ["net/layer_1/a/Add"] d = Add (c, two)
  ["net/layer_1/b/Mul"] e = Mul (d, a)
  ["net/end/Neg"] y = Neg (e)
}"""


def hugging_face(folder: Path, network: Any) -> Model:
    network.config.architectures = [type(network).__name__]
    network.save_pretrained(folder)
    kind = get_registry().create("drupe_model_kinds", "hf")
    context = make_context(folder / "import")
    model: Model = kind.load(
        type(kind).Config.model_validate({"model_path": str(folder)}), {"model": folder}, context
    ).at(context.output_dir)
    return model


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    return ViTForImageClassification(ViTConfig(num_hidden_layers=4, **sizes))


def t5(layers: int = 2) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=layers, num_heads=2, decoder_start_token_id=0)
    )


IDS = np.random.default_rng(0).integers(1, 50, (2, 9))
TEXTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "decoder_input_ids": IDS[:, :4]}
PIXELS = {"pixel_values": np.random.default_rng(0).random((3, 3, 16, 16), np.float32)}


@pytest.mark.parametrize(
    ("make", "batch", "expected"),
    [
        (vit, PIXELS, {f"vit.layers.{n}": n // 2 for n in range(4)}),
        (t5, TEXTS, {"encoder.block.0": 0, "encoder.block.1": 0, "decoder.block.0": 1, "decoder.block.1": 1}),
    ],
)
def test_a_network_that_files_or_names_tell_otherwise(
    make: Any, batch: dict[str, np.ndarray], expected: dict[str, int], tmp_path: Path
) -> None:
    """A ViT's files call its blocks by older names; a T5's decoder stands before its encoder by the alphabet."""
    source = run_pass("CaptureSplitInfo", hugging_face(tmp_path / "model", make()), tmp_path / "told", num_splits=2)
    assert source.attributes["split_assignments"] == expected
    whole = run_pass("OnnxConversion", source, tmp_path / "graph", use_dynamo_exporter=False, target_opset=17)
    split = run_pass("SplitModel", whole, tmp_path / "split")
    assert len(split.attributes["components"]) == 2
    wanted = forward("onnx", whole, batch)
    for name, value in forward("composite", split, batch).items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-5)


def test_a_users_module_is_divided_without_naming_its_blocks(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(SCRIPT)
    context = make_context(tmp_path / "import", accelerator=CPU, allow={"user-scripts"})
    told = {"input_names": ["x"], "input_shapes": [[2, 4]], "output_names": ["y"], "dynamic_axes": {"x": {"0": "n"}}}
    config = PytorchConfig.model_validate({"model_script": "s.py", "model_loader": "net", "io_config": told})
    kind = get_registry().create("drupe_model_kinds", "pytorch")
    model = kind.load(config, {"script": tmp_path / "s.py"}, context).at(context.output_dir)

    def run(name: str, model: Model, **config: Any) -> Model:
        context = make_context(tmp_path / name, accelerator=CPU, allow={"user-scripts"})
        return run_pass(name, model, tmp_path / name, context=context, **config)

    source = run("CaptureSplitInfo", model, num_splits=2)
    assert source.attributes["split_assignments"] == {f"units.{n}": n // 2 for n in range(4)}
    whole = run("OnnxConversion", source, use_dynamo_exporter=False, target_opset=17)
    batch = {"x": np.random.default_rng(0).random((5, 4), np.float32)}
    (wanted,) = answers(whole, batch)
    np.testing.assert_allclose(forward("composite", run("SplitModel", whole), batch)["y"], wanted, atol=1e-6)


def test_a_graph_is_divided_by_its_nodes_names(tmp_path: Path) -> None:
    source = run_pass("CaptureSplitInfo", saved(tmp_path / "model", NAMED), tmp_path / "told", num_splits=2)
    assert source.attributes["split_assignments"] == {"net.layer_0": 0, "net.layer_1": 1}
    split = run_pass("SplitModel", source, tmp_path / "split")
    batch = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    np.testing.assert_array_equal(forward("composite", split, batch)["y"], answers(source, batch)[0])
    bare = saved(tmp_path / "bare", NAMED.replace("net/", "").replace("layer_", "part"))
    with pytest.raises(ConfigError, match=r"no module 'net\.layer' that holds others; its blocks are in part0, part1"):
        run_pass("CaptureSplitInfo", bare, tmp_path / "no", num_splits=2, block_to_split="net.layer")


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ({"f": 9, "l.0.a": 5, "l.0.e.0.w": 1, "l.0.e.1.w": 1, "l.1.a": 5}, 2, ["l.0", "l.1"]),
        ({"s.0.b.0.w": 5, "s.0.b.1.w": 5, "s.1.b.0.w": 9}, 3, ["s.0.b.0", "s.0.b.1", "s.1.b.0"]),
        ({"0.l.0.w": 50, "0.l.1.w": 50, "1.h": 1}, 2, ["0.l.0", "0.l.1"]),
        ({"e.l.0.w": 50, "e.l.1.w": 50, "box.l.0.w": 1, "box.l.1.w": 1}, 2, ["e.l.0", "e.l.1"]),
        ({"block1.w": 4, "block2.w": 5, "fc1": 3, "fc2": 3}, 2, ["block1", "block2"]),
        ({"0": 5, "2": 5, "4": 5}, 2, ["0", "2", "4"]),
        ({"first": 5, "second": 5}, 2, []),
    ],
    ids=["experts", "stages", "backbone", "small", "siblings", "sequential", "none"],
)
def test_what_counts_as_a_stack(sizes: dict[str, int], count: int, expected: list[str]) -> None:
    assert blocks_of(sizes, count) == expected


def test_a_model_without_a_stack_is_told_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no stack of blocks .* name as block_to_split modules"):
        run_pass(
            "CaptureSplitInfo", saved(tmp_path / "m", NAMED.replace("layer_0", "p").replace("layer_1", "q")),
            tmp_path / "t", num_splits=2,
        )  # fmt: skip

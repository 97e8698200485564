"""MoEExpertsDistributor: ranks that together say what their source says, each with weights of its own experts only.

ONNX Runtime's package for CPUs has no AllReduce, so ranks run in one process: as one graph in which it is a sum.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.onnx.distributed import DistributedConfig
from drupe.plugins.onnx.moe_experts_distributor import MoEExpertsDistributorConfig
from drupe.testing import PassContract, byte_tokenizer, make_context, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, answers, cosine, run_pass, saved
from tests.support.jobs import job_context

RANDOM = np.random.default_rng(2)
_SPARSE = """<ir_version: 8, opset_import: ["" : {opset}]>
g (float[T, 4] x) => (float[T, 4] y) {{
  scores = MatMul (x, router)
  k = Constant <value_ints = [2]> ()
  chosen, ids = TopK (scores, k)
  share = Softmax <axis = -1> (chosen)
  table = Gather (down, ids)
  inner = Constant <value_ints = [1, 2]> ()
  wide = Unsqueeze (x, inner)
  each = MatMul (wide, table)
  row = Constant <value_ints = [2]> ()
  flat = Squeeze (each, row)
  last = Constant <value_ints = [-1]> ()
  tall = Unsqueeze (share, last)
  said = Mul (flat, tall)
  middle = Constant <value_ints = [1]> ()
  sum = ReduceSum <keepdims = 0> (said, middle)
  y = Add (x, sum)
}}"""


def mixtral(folder: Path, **config: Any) -> Model:
    """A Mixtral of two layers with random weights."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    byte_tokenizer().save_pretrained(folder)
    values: dict[str, Any] = {
        "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 5, "num_experts_per_tok": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MixtralForCausalLM(MixtralConfig(**{**values, **config}))
        # Answers of experts as large as what they are added to, so that a lost one shows.
        for layer in net.model.layers:
            torch.nn.init.normal_(layer.mlp.experts.gate_up_proj, std=0.5)
            torch.nn.init.normal_(layer.mlp.experts.down_proj, std=0.5)
        net.save_pretrained(folder)
    attributes = {"task": "text-generation", "architecture": "MixtralForCausalLM", "dtype": "float32"}
    return Model.from_dir("hf", folder, attributes)


def sparse(folder: Path, experts: int = 3, opset: int = 17, text: str = _SPARSE) -> Model:
    """One mixture of linear experts, written out."""
    weights = {
        "router": RANDOM.normal(size=(4, experts)).astype(np.float32),
        "down": RANDOM.normal(size=(experts, 4, 4)).astype(np.float32),
    }
    return saved(folder, text.format(opset=opset), weights)


def together(ranks: Model) -> ort.InferenceSession:
    """The ranks in one graph that is built here: names by rank, and Sum for AllReduce."""
    protos = [onnx.load(str(ranks.folder / name)) for name in ranks.attributes["ranks"]]
    inputs = {value.name for value in protos[0].graph.input}
    whole = onnx.ModelProto()
    whole.CopyFrom(protos[0])
    del whole.graph.node[:], whole.graph.initializer[:]
    waiting: list[list[Any]] = []
    for rank, proto in enumerate(protos):
        prefixed = onnx.compose.add_prefix(proto, f"r{rank}/", rename_inputs=False)
        queue = list(prefixed.graph.node)
        whole.graph.initializer.extend(prefixed.graph.initializer)
        waiting.append(queue)
    number = 0
    while any(waiting):
        partials = []
        for queue in waiting:
            while queue and queue[0].op_type != "AllReduce":
                whole.graph.node.append(queue.pop(0))
            if queue:
                partials.append(queue.pop(0))
        if partials:
            assert len(partials) == len(protos)
            parts = [node.input[0] for node in partials]
            whole.graph.node.append(onnx.helper.make_node("Sum", parts, [f"sum{number}"]))
            for node in partials:
                whole.graph.node.append(onnx.helper.make_node("Identity", [f"sum{number}"], [node.output[0]]))
            number += 1
    for value in list(whole.graph.output):
        whole.graph.node.append(onnx.helper.make_node("Identity", [f"r0/{value.name}"], [value.name]))
    del whole.graph.value_info[:]
    assert inputs == {value.name for value in whole.graph.input} and number
    return ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("mixtral")
    return run_pass("OnnxConversion", mixtral(folder / "m"), folder / "export", use_dynamo_exporter=False)


class TestMoEExpertsDistributor(PassContract):
    name = "MoEExpertsDistributor"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return sparse(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"world_size": 2}


def test_an_export_says_what_the_mixture_says(graph: Model, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(mixtral(tmp_path / "m").folder).eval()
    ids = RANDOM.integers(0, 264, (2, 7))
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    found = answers(graph, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_say_together_what_their_source_says(graph: Model, tmp_path: Path, world_size: int) -> None:
    context = make_context(tmp_path / "job", accelerator=CPU)
    ranks = run_pass("MoEExpertsDistributor", graph, tmp_path, context=context, world_size=world_size)
    assert ranks.kind == "distributed" and ranks.attributes["task"] == "text-generation"
    owned = context.report["experts"]["by_rank"]
    assert owned == ([[0, 1, 2], [3, 4]] if world_size == 2 else [[n] for n in range(5)])
    for name, experts in zip(ranks.attributes["ranks"], owned, strict=True):
        proto = onnx.load(str(ranks.folder / name))
        tables = {t.name: t.dims[0] for t in proto.graph.initializer if "experts." in t.name}
        assert len(tables) == 4 and set(tables.values()) == {len(experts)}
        assert [node.op_type for node in proto.graph.node].count("AllReduce") == 2
    ids = RANDOM.integers(0, 264, (3, 9))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.testing.assert_allclose(together(ranks).run(None, batch)[0], answers(graph, batch)[0], atol=1e-4)


def test_a_rank_alone_says_something_else(graph: Model, tmp_path: Path) -> None:
    """The comparison above would see a rank that does not count."""
    ranks = run_pass("MoEExpertsDistributor", graph, tmp_path / "job", world_size=2)
    proto = onnx.load(str(ranks.folder / "model_00.onnx"))
    for node in proto.graph.node:
        if node.op_type == "AllReduce":
            node.op_type, node.domain = "Identity", ""
    ids = RANDOM.integers(0, 264, (1, 9))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    alone = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, batch)[0]
    assert np.abs(alone - answers(graph, batch)[0]).max() > 0.05


@pytest.mark.slow
def test_the_other_exporters_graph_is_split_too(tmp_path: Path) -> None:
    source = run_pass("OnnxConversion", mixtral(tmp_path / "m", num_hidden_layers=1), tmp_path / "export")
    ranks = run_pass("MoEExpertsDistributor", source, tmp_path / "job", world_size=2, save_as_external_data=True)
    assert (ranks.folder / "model_01.onnx.data").is_file() and (ranks.folder / "tokenizer.json").is_file()
    ids = RANDOM.integers(0, 264, (2, 6))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.testing.assert_allclose(together(ranks).run(None, batch)[0], answers(source, batch)[0], atol=1e-4)


def test_the_runtime_runs_all_ranks_in_one_process(graph: Model, tmp_path: Path) -> None:
    ranks = run_pass("MoEExpertsDistributor", graph, tmp_path / "job", world_size=3)
    registry = get_registry()
    runtime = registry.create("drupe_runtimes", "distributed")
    assert "score" in runtime.capabilities(ranks)
    ids = RANDOM.integers(0, 256, (2, 9))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with runtime.open(ranks, CPU, runtime.options(CPU, {"threads": 1})) as session:
        np.testing.assert_allclose(session.forward(batch).outputs["logits"], answers(graph, batch)[0], atol=1e-4)
        assert list(session.tokenize("ab")) == [97 - 33, 98 - 33]
        metric = registry.create("drupe_metrics", "perplexity")
        rows = metric.measure(
            ranks,
            session,
            [Sample("a", {"input_ids": ids[0], "labels": ids[0]})],
            metric.Config(),
            job_context(tmp_path),
        )
    assert 100 < metric.aggregate(list(rows.values()), metric.default_sub_type, metric.Config()) < 1000


def test_ranks_are_read_as_an_input_model(graph: Model, tmp_path: Path) -> None:
    ranks = run_pass("MoEExpertsDistributor", graph, tmp_path / "job", world_size=2)
    kind = get_registry().create("drupe_model_kinds", "DistributedOnnxModel")
    config = DistributedConfig(model_path=str(ranks.folder), num_ranks=2)
    read = kind.load(config, {"model": ranks.folder}, into(tmp_path / "read"))
    assert read.kind == "distributed" and read.attributes["ranks"] == ["model_00.onnx", "model_01.onnx"]
    with pytest.raises(ConfigError, match=r"has no model_02.onnx; graphs there: model_00.onnx, model_01.onnx"):
        three = DistributedConfig(model_path=str(ranks.folder), num_ranks=3)
        kind.load(three, {"model": ranks.folder}, into(tmp_path / "three"))
    with pytest.raises(ValidationError, match="is the same for every rank"):
        DistributedConfig(model_path="m", num_ranks=2, model_name_pattern="model.onnx")


def into(folder: Path) -> JobContext:
    context: JobContext = make_context(folder)
    return context


def test_shares_that_are_looked_up_by_the_choice(tmp_path: Path) -> None:
    """Routers that rank by one number and weigh by another, as DeepSeek's do."""
    looked_up = "all = Sigmoid (scores)\n  share = GatherElements <axis = 1> (all, ids)"
    text = _SPARSE.replace("share = Softmax <axis = -1> (chosen)", looked_up)
    source = sparse(tmp_path / "m", experts=4, text=text)
    ranks = run_pass("MoEExpertsDistributor", source, tmp_path / "job", world_size=4)
    x = RANDOM.normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_allclose(together(ranks).run(None, {"x": x})[0], answers(source, {"x": x})[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("table = Gather (down, ids)", "table = Gather (down, ids)\n  all = ReduceSum (down)"),
         r"node 'ReduceSum_\d+' \(ReduceSum\) reads down, the experts of 'TopK_2', by another choice"),
        (("table = Gather (down, ids)", "zero = Constant <value_int = 0> ()\n  all = Gather (down, zero)\n"
          "  table = Gather (down, ids)"), r"node 'Gather_\d+' \(Gather\) reads down, the experts of 'TopK_2'"),
        (("said = Mul (flat, tall)", "said = Add (flat, tall)"), "'TopK_2' chooses experts, and no product"),
    ],
)  # fmt: skip
def test_mixtures_that_cant_be_split_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    source = sparse(tmp_path / "m", text=_SPARSE.replace(*change))
    with pytest.raises(PassError, match=message):
        run_pass("MoEExpertsDistributor", source, tmp_path / "job", world_size=2)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"no mixture of experts is in the graph.*TopK nodes are none"):
        run_pass("MoEExpertsDistributor", tiny_onnx_mlp(tmp_path / "a"), tmp_path / "1", world_size=2)
    with pytest.raises(ConfigError, match="world_size 4, and 'TopK_2' chooses among 3 experts"):
        run_pass("MoEExpertsDistributor", sparse(tmp_path / "b"), tmp_path / "2", world_size=4)
    with pytest.raises(PassError, match="the graph has opset 13; expected 15 or more"):
        run_pass("MoEExpertsDistributor", sparse(tmp_path / "c", opset=13), tmp_path / "3", world_size=2)
    with pytest.raises(ConfigError, match="external_data_name names one file"):
        run_pass(
            "MoEExpertsDistributor", sparse(tmp_path / "d"), tmp_path / "4", world_size=2, external_data_name="w.bin"
        )
    fused = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[T, 4] x, float[T, 2] p) => (float[T, 4] y) { y = com.microsoft.MoE <k = 1> (x, p, a, , b) }"""
    tables = {name: np.zeros((2, 4, 4), np.float32) for name in "ab"}
    with pytest.raises(
        PassError, match=r"node 'MoE_0' is ONNX Runtime's fused MoE, which routes and calculates in one"
    ):
        run_pass(
            "MoEExpertsDistributor", saved(tmp_path / "e", fused, tables, check=False), tmp_path / "5", world_size=2
        )
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        MoEExpertsDistributorConfig(world_size=1)


@pytest.fixture(scope="module")
def smollm2_cut_dir(smollm2_cut_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first two blocks with its first 16,384 tokens: as they are, in llama/, and as a mixture, in mixture/.

    Each expert is the MLP with its units in another order, and the shares of the chosen ones add up to 1: so both say
    the same (sparse upcycling, Komatsuzaki et al. 2023, arXiv 2212.05055).
    """
    import torch
    from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("upcycled")
    llama = LlamaForCausalLM.from_pretrained(smollm2_cut_dir, dtype=torch.float32, num_hidden_layers=2)
    llama.resize_token_embeddings(16384)
    llama.save_pretrained(folder / "llama")
    told = llama.config.to_dict()
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
            "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
    config = MixtralConfig(
        num_local_experts=3, num_experts_per_tok=2, **{key: told[key] for key in same if key in told}
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        mixture = MixtralForCausalLM(config)
        state = {name: value for name, value in llama.state_dict().items() if ".mlp." not in name}
        assert not mixture.load_state_dict(state, strict=False).unexpected_keys
        for dense, layer in zip(llama.model.layers, mixture.model.layers, strict=True):
            for expert in range(3):
                order = torch.randperm(config.intermediate_size)
                gate, up = dense.mlp.gate_proj.weight[order], dense.mlp.up_proj.weight[order]
                layer.mlp.experts.gate_up_proj[expert] = torch.cat([gate, up])
                layer.mlp.experts.down_proj[expert] = dense.mlp.down_proj.weight[:, order]
    mixture.save_pretrained(folder / "mixture")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2_cut_dir / name, folder / "llama" / name)
    return folder


@pytest.mark.slow
@pytest.mark.real_run("MoEExpertsDistributor")
def test_a_language_model_made_a_mixture_says_on_two_ranks_what_it_said(smollm2_cut_dir: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = Model.from_dir("hf", smollm2_cut_dir / "mixture", {"task": "text-generation", "dtype": "float32"})
    source = run_pass("OnnxConversion", model, tmp_path / "export", use_dynamo_exporter=False)
    ranks = run_pass("MoEExpertsDistributor", source, tmp_path / "job", world_size=2)
    text = "The old man walked slowly down to the river and sat by the water until the sun went down."
    ids = np.array(AutoTokenizer.from_pretrained(smollm2_cut_dir / "llama")(text)["input_ids"])[None]
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found = together(ranks).run(None, batch)[0]
    with torch.inference_mode():
        llama = AutoModelForCausalLM.from_pretrained(smollm2_cut_dir / "llama", dtype=torch.float32)
        expected = llama(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(found, answers(source, batch)[0], atol=2e-3)
    assert cosine(found, expected) > 0.999999 and (found.argmax(-1) == expected.argmax(-1)).all()

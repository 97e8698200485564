"""The quantizers on decoders that are not built like Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.quantization.checkpoint import float_state
from drupe.testing import byte_tokenizer, make_context
from tests.plugins.onnx.graphs import kinds, run_pass
from tests.plugins.quantization.decoders import decoder, logits


def saved(folder: Path, name: str, **config: Any) -> Model:
    import torch
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    kind(
        kind.config_class(vocab_size=264, bos_token_id=256, eos_token_id=257, pad_token_id=258, **config)
    ).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return Model.from_dir("hf", folder, {"task": "text-generation", "architecture": name})


def test_a_head_that_shares_the_table_of_another_name_is_found_again(tmp_path: Path) -> None:
    opt = {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
    }
    source = saved(tmp_path / "model", "OPTForCausalLM", **opt)
    result = run_pass("Rtn", source, tmp_path / "job", bits=8, group_size=32)
    np.testing.assert_allclose(logits(result), logits(source), atol=0.02 * abs(logits(source)).max())


def test_a_table_of_another_name_is_rounded_where_it_is_asked_for(tmp_path: Path) -> None:
    source = decoder(tmp_path / "model", "GPTNeoX")
    made = run_pass("Rtn", source, tmp_path / "job", group_size=32, embeds=True)
    before, after = (float_state(model.folder)["gpt_neox.embed_in.weight"] for model in (source, made))
    assert 0 < float((after - before).abs().max()) < 0.2 * float(before.abs().max())


def test_blocks_without_linear_layers_are_refused_and_their_graph_tells_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = saved(tmp_path / "model", "GPT2LMHeadModel", n_embd=64, n_layer=2, n_head=4)
    with pytest.raises(PassError, match=r"GPT2LMHeadModel has no linear layers .*Conv1D.*OnnxConversion"):
        run_pass("Rtn", source, tmp_path / "job", group_size=32)
    graph = run_pass("OnnxConversion", source, tmp_path / "graph", use_dynamo_exporter=False, target_opset=17)
    run_pass("OnnxBlockWiseRtnQuantization", graph, tmp_path / "int4", block_size=32)
    assert "8 Gemm nodes hold weights: put GraphSurgeries with the surgeon GemmToMatMulAdd before it" in caplog.text
    surgeries = [{"surgeon": "GemmToMatMulAdd"}]
    products = run_pass("GraphSurgeries", graph, tmp_path / "products", surgeries=surgeries)
    small = run_pass("OnnxBlockWiseRtnQuantization", products, tmp_path / "small", block_size=32)
    assert kinds(small)["MatMulNBits"] >= 8


def test_experts_that_stay_in_float_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = decoder(tmp_path / "model", "Mixtral", num_local_experts=4, num_experts_per_tok=2)
    run_pass("Rtn", source, tmp_path / "job", group_size=32)
    assert "% of the weights of MixtralForCausalLM's blocks are in no linear layer" in caplog.text
    with pytest.raises(PassError, match="experts of MixtralForCausalLM are one tensor"):
        run_pass("AutoRound", source, tmp_path / "round", group_size=32)


def test_calibration_has_no_more_tokens_than_the_model_has_places(tmp_path: Path) -> None:
    opt = {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 20}
    source = decoder(tmp_path / "model", "OPT", **opt)
    data = {"text": [Sample("s", {"input_ids": np.arange(40)}, content_key="k")]}
    for name, more in (("given", {"data_config": "text"}), ("written", {"nsamples": 2})):
        context = make_context(tmp_path / name, data=data)
        run_pass("Gptq", source, tmp_path / name, context=context, group_size=32, seqlen=30, **more)
        assert context.report["calibration"]["tokens"] == 20 * context.report["calibration"]["sequences"]

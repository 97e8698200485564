"""What is asked for by name and finds nothing in a graph is told once, in the log and the report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.plugins.onnx.transformers_optimization import OrtTransformersOptimizationConfig
from drupe.testing import make_context, tiny_encoder, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, kinds, run_pass

ROWS = [Sample(f"s{n}", {"x": row}) for n, row in enumerate(np.random.default_rng(0).normal(size=(8, 8)))]
STATIC = {"data_config": "d"}
FUSED = {"model_type": "gpt2"}


@pytest.mark.parametrize(
    ("name", "config", "idle"),
    [
        ("OrtTransformersOptimization", {**FUSED, "use_gqa": True}, ["use_gqa"]),
        (
            "OrtTransformersOptimization",
            {**FUSED, "input_int32": True, "optimization_options": {"enable_gelu": True, "enable_attention": False}},
            ["optimization_options.enable_gelu", "input_int32"],
        ),
        (
            "OrtTransformersOptimization",
            {**FUSED, "float16": True, "force_fp32_ops": ["Relu", "Softmax"], "force_fp16_inputs": {"Conv": [0]}},
            ["force_fp32_ops (Softmax)", "force_fp16_inputs (Conv)"],
        ),
        ("OnnxFloatToFloat16", {"op_block_list": ["Softmax", "Relu"]}, ["op_block_list (Softmax)"]),
        ("OrtMixedPrecision", {"op_block_list": ["Add"]}, ["op_block_list (Add)"]),
        ("OrtMixedPrecision", {}, []),
        (
            "OnnxDynamicQuantization",
            {"op_types_to_quantize": ["MatMul", "Gather"], "op_types_to_exclude": ["Conv"]},
            ["op_types_to_quantize (Gather)", "op_types_to_exclude (Conv)"],
        ),
        ("OnnxStaticQuantization", {**STATIC, "op_types_to_exclude": ["Conv"]}, ["op_types_to_exclude (Conv)"]),
        (
            "MixedPrecisionOverrides",
            {**STATIC, "element_wise_binary_ops": ["Add"], "op_types_to_quantize": ["Gemm", "MatMul"]},
            ["op_types_to_quantize (MatMul)", "element_wise_binary_ops (Add)"],
        ),
        ("OnnxPeepholeOptimizer", {"cast_chain_elimination": True}, ["cast_chain_elimination"]),
        ("OnnxPeepholeOptimizer", {}, []),
        (
            "OnnxBlockWiseRtnQuantization",
            {"op_types_to_quantize": ["MatMul", "Gather"], "block_size": 16},
            ["op_types_to_quantize (Gather)"],
        ),
        ("OnnxBlockWiseRtnQuantization", {"block_size": 16}, []),
        (
            "GraphSurgeries",
            {"surgeries": [{"surgeon": "ReciprocalMulToDiv"}, {"surgeon": "GemmToMatMulAdd"}]},
            ["surgeries[0] (ReciprocalMulToDiv)"],
        ),
    ],
)
def test_what_finds_nothing_is_one_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, config: dict[str, Any], idle: list[str]
) -> None:
    context = make_context(tmp_path / "job", accelerator=CPU, data={"d": ROWS})
    model = tiny_onnx_mlp(tmp_path / "m")
    if name == "OnnxBlockWiseRtnQuantization":
        # Which quantizes no Gemm.
        more = {"surgeries": [{"surgeon": "GemmToMatMulAdd"}]}
        model = run_pass("GraphSurgeries", model, tmp_path / "products", **more)
        model = run_pass("OnnxOpVersionConversion", model, tmp_path / "newer", target_opset=21)
    run_pass(name, model, tmp_path, context=context, **config)
    assert context.report.get("without_effect", {}) == ({"model.onnx": idle} if idle else {})
    told = [record.getMessage() for record in caplog.records if "found nothing to change" in record.getMessage()]
    assert len(told) == bool(idle)
    if idle:
        assert told[0].startswith(f"{name}: {', '.join(idle)} found nothing to change in model.onnx")
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.getMessage() in told)


def test_fusions_that_were_found_are_not_told(tmp_path: Path) -> None:
    traced = {"use_dynamo_exporter": False, "target_opset": 17}
    graph = run_pass("OnnxConversion", tiny_encoder(tmp_path / "m"), tmp_path / "graph", **traced)
    options = {"enable_attention": True, "enable_skip_layer_norm": True, "enable_gelu": True, "enable_layer_norm": True}
    context = make_context(tmp_path / "job", accelerator=CPU)
    wanted = {**options, "enable_qordered_matmul": True}
    fused = run_pass(
        "OrtTransformersOptimization", graph, tmp_path, context=context, input_int32=True, optimization_options=wanted
    )
    assert kinds(fused)["Attention"] == 2
    assert context.report["without_effect"] == {"model.onnx": ["optimization_options.enable_qordered_matmul"]}


def test_fusions_that_are_left_out_are_told_before_work() -> None:
    notices: list[str] = []
    OrtTransformersOptimizationConfig.model_validate(
        {"only_onnxruntime": True, "use_gqa": True, "optimization_options": {"enable_gelu": True}},
        context={"notices": notices},
    )
    assert [notice.partition(" has no effect")[0] for notice in notices] == ["optimization_options", "use_gqa"]

"""Registers the ONNX passes, composite models and their runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import ModelKindSpec, PassSpec, RuntimeSpec, Spec
from drupe.plugins.onnx.provider_table import provider_packages
from drupe.plugins.onnx.surgery.specs import SurgeonSpec

_SURGEONS = {
    "names": {
        "ExposeOutputs": "Make outputs of nodes outputs of the graph",
        "InferShapes": "Infer the shapes of all values",
        "RemoveInitializerFromInputs": "List weights no longer as inputs",
        "RemoveShapes": "Forget the shapes of inner values",
        "RenameInputDims": "Name an axis of an input",
        "RenameInputs": "Give inputs other names",
        "RenameOutputDims": "Name an axis of an output",
        "RenameOutputs": "Give outputs other names",
        "ReorderInputs": "Put the inputs into another order",
        "ZeroOutInput": "Give a node zeros in place of an input",
    },
    "arithmetic": {
        "GemmToMatMulAdd": "Gemm becomes MatMul and Add",
        "MatMulAddToGemm": "MatMul and Add become Gemm",
        "ReciprocalMulToDiv": "A product with a reciprocal becomes a quotient",
        "ReplaceAttentionMaskValue": "Constants near minus infinity become smaller ones",
    },
    "norms": {
        "PowReduceSumPowDiv2LpNorm": "A spelled-out L2 norm becomes LpNormalization",
        "SimplifiedLayerNormToL2Norm": "An RMS norm becomes an L2 norm and a product",
    },
    "embeddings": {
        "QuantizeEmbeddingInt8": "Give an embedding's table 8 bits",
        "ShareEmbeddingLmHead": "One quantized table for embedding and head",
        "TieWordEmbeddings": "One table for embedding and head",
    },
    "decoders": {
        "AttentionMaskToSequenceLengths": "Lengths become inputs in place of the attention mask",
        "PackedAttentionToLoopMHA": "Packed attention becomes a loop of MultiHeadAttention",
        "RemoveRopeMultiCache": "Keep one of two tables of rotary positions",
    },
}
"""Module of the surgery package → its surgeons and what they do."""


_ALSO_COMPOSITE = frozenset({"onnx", "genai", "composite"})


def _pass(name: str, module: str, summary: str, **more: Any) -> PassSpec:
    fields: dict[str, Any] = {
        "accepts": frozenset({"onnx", "genai"}),
        "requires": ("onnx>=1.19", "onnxruntime>=1.22"),
        "key_packages": ("onnx", "onnxruntime", "onnx-ir"),
    }
    return PassSpec(name=name, target=f"drupe.plugins.onnx.{module}:{name}", summary=summary, **{**fields, **more})


@hookimpl
def drupe_hookspecs() -> Mapping[str, type[Spec]]:
    """Open the hook through which surgeons come."""
    return {"drupe_surgeons": SurgeonSpec}


@hookimpl
def drupe_surgeons() -> list[SurgeonSpec]:
    """Contribute the built-in surgeons."""
    return [
        SurgeonSpec(name=name, target=f"drupe.plugins.onnx.surgery.{module}:{name}", summary=summary)
        for module, surgeons in _SURGEONS.items()
        for name, summary in surgeons.items()
    ]


@hookimpl
def drupe_passes() -> list[PassSpec]:
    """Contribute the ONNX passes."""
    return [
        _pass(
            "OnnxConversion",
            "conversion",
            "Export a Hugging Face model or a module as an ONNX graph",
            accepts=frozenset({"hf", "pytorch", "sliced"}),
            produces="onnx",
            requires=("onnx>=1.19", "onnxscript>=0.6", "torch>=2.7", "transformers>=5.10"),
            key_packages=("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "peft"),
        ),
        _pass(
            "OptimumConversion",
            "optimum_conversion",
            "Export a Hugging Face model with Optimum, in an environment of its own",
            accepts=frozenset({"hf"}),
            produces="onnx",
            requires=(
                "optimum-onnx>=0.1",
                "transformers>=4.36,<4.58",
                "accelerate>=0.26",
                "torch>=2.1",
                "onnx>=1.19",
                "onnxruntime>=1.18",
            ),
            key_packages=("optimum-onnx", "optimum", "transformers", "torch", "onnx"),
            own_environment=True,
        ),
        _pass(
            "OptimumMerging",
            "merging",
            "Merge a decoder without past and one with past into one graph",
            accepts=frozenset({"onnx", "composite"}),
            produces="onnx",
        ),
        _pass(
            "OnnxDynamicQuantization",
            "dynamic_quantization",
            "Quantize weights to 8 bits, activations as they come",
            accepts=_ALSO_COMPOSITE,
        ),
        _pass(
            "GraphSurgeries",
            "graph_surgeries",
            "Apply named changes to a graph, one after another",
            requires=("onnx>=1.19", "onnxruntime>=1.22", "onnx-ir>=0.1.16"),
        ),
        _pass(
            "OrtTransformersOptimization",
            "transformers_optimization",
            "Fuse a transformer's parts into ONNX Runtime's operators",
            accepts=_ALSO_COMPOSITE,
            accelerator_matters=True,
        ),
        _pass(
            "OnnxPeepholeOptimizer",
            "peephole",
            "Fold constants, remove what is dead or double",
            requires=("onnx>=1.19", "onnxruntime>=1.22", "onnxscript>=0.6", "onnx-ir>=0.1.16"),
            key_packages=("onnx", "onnxscript", "onnx-ir", "onnxslim", "onnxoptimizer"),
        ),
        _pass(
            "OnnxScriptFusion",
            "script_fusion",
            "Fuse a transformer's parts by onnxscript's patterns, and check that it says the same",
            accepts=_ALSO_COMPOSITE,
            requires=("onnx>=1.19", "onnxruntime>=1.22", "onnxscript>=0.6", "onnx-ir>=0.1.16"),
            key_packages=("onnx", "onnxruntime", "onnxscript", "onnx-ir"),
        ),
        _pass(
            "OnnxDiscrepancyCheck",
            "discrepancy_check",
            "Compare a graph with the model that it was made of, and stop beyond limits",
            accepts=_ALSO_COMPOSITE,
            accelerator_matters=True,
        ),
        _pass("OnnxFloatToFloat16", "float16", "Convert a float32 graph to float16", accepts=_ALSO_COMPOSITE),
        _pass(
            "OrtMixedPrecision",
            "float16",
            "Convert to float16 but for sensitive operators",
            accepts=_ALSO_COMPOSITE,
        ),
        _pass("OnnxIODataTypeConverter", "io_types", "Give inputs and outputs other types"),
        _pass(
            "InputNCHWtoNHWC",
            "input_layout",
            "Take pictures with their channels last",
            accepts=frozenset({"onnx", "composite"}),
            accelerator_matters=True,
        ),
        _pass("DynamicToFixedShape", "shapes", "Fix the lengths of a graph's axes"),
        _pass(
            "OnnxOpVersionConversion",
            "opset",
            "Convert to another version of the operator set",
            accepts=_ALSO_COMPOSITE,
        ),
        _pass(
            "MatMulNBitsToQDQ",
            "nbits_to_qdq",
            "Write products of few bits with standard operators",
            requires=("onnx>=1.19", "onnxruntime>=1.22", "onnx-ir>=0.1.16"),
        ),
        _pass("QuantizationPreprocess", "preprocess", "Infer shapes and tidy a graph before it is quantized"),
        _pass(
            "OrtSessionParamsTuning",
            "session_tuning",
            "Find the session options with which a graph runs fastest here",
            requires=("onnx>=1.19", "onnxruntime>=1.22", "optuna>=5.0"),
            accelerator_matters=True,
            # What is fastest is measured, and may differ from one run to the next.
            deterministic=False,
        ),
        _pass(
            "ExtractAdapters",
            "extract_adapters",
            "Take an adapter's weights out of a graph, so that one graph serves several",
            requires=("onnx>=1.19", "onnxruntime>=1.22", "safetensors>=0.5"),
            key_packages=("onnx", "onnxruntime", "safetensors"),
        ),
        _pass(
            "AppendPrePostProcessingOps",
            "pre_post_processing",
            "Put what is done before and after a model into its graph",
            accepts=frozenset({"onnx"}),
            requires=("onnx>=1.19", "onnxruntime>=1.22", "onnxruntime-extensions>=0.13"),
            key_packages=("onnx", "onnxruntime-extensions", "torch", "transformers"),
        ),
        _pass("AddOliveMetadata", "metadata", "Write facts into the graph's metadata", aliases=("AddMetadata",)),
        _pass(
            "MixedPrecisionOverrides",
            "mixed_precision_overrides",
            "Choose the activations to which static quantization gives 16 bits",
        ),
        _pass("OnnxStaticQuantization", "static_quantization", "Quantize weights and activations by calibrated ranges"),
        _pass("OnnxQuantization", "quantization", "Quantize weights and activations, statically or dynamically"),
        _pass(
            "OnnxBlockWiseRtnQuantization",
            "block_quantization",
            "Quantize weights in blocks, rounding to nearest",
        ),
        _pass("OnnxKQuantQuantization", "block_quantization", "Quantize weights in blocks by least squares (k-quant)"),
        _pass(
            "CaptureSplitInfo",
            "capture_split_info",
            "Note which modules go into which piece, for SplitModel",
            accepts=frozenset({"hf", "pytorch", "onnx", "genai"}),
            key_packages=("transformers",),
            accelerator_matters=True,
        ),
        _pass(
            "SplitModel",
            "split_model",
            "Cut a graph into pieces that run one after another",
            produces="composite",
        ),
        _pass(
            "ComposeOnnxModels",
            "split_model",
            "Make one graph of a composite's",
            accepts=frozenset({"composite", "genai"}),
            produces="onnx",
        ),
        _pass(
            "MoEExpertsDistributor",
            "moe_experts_distributor",
            "Split a mixture of experts into one graph a rank",
            accepts=frozenset({"onnx"}),
            produces="distributed",
        ),
        _pass(
            "InsertBeamSearch",
            "beam_search",
            "Make one graph that generates with beams of an encoder and a decoder with its past",
            accepts=frozenset({"composite"}),
            produces="onnx",
            accelerator_matters=True,
        ),
        _pass(
            "EPContextBinaryGenerator",
            "ep_context",
            "Compile graphs for a device, so that its execution provider opens them at once",
            accepts=_ALSO_COMPOSITE,
            # Which package brings ONNX Runtime depends on the provider: the pass asks for it.
            requires=("onnx>=1.19",),
            key_packages=("onnx", "onnxruntime", *provider_packages()),
            accelerator_matters=True,
            on_target=True,
            # Providers name what they compiled as they like.
            deterministic=False,
        ),
        _pass(
            "OnnxBnb4Quantization",
            "bnb4_quantization",
            "Quantize weights to four bits, spaced as a normal distribution or as floats are",
        ),
        _pass(
            "OnnxHqqQuantization",
            "block_quantization",
            "Quantize weights in blocks by half-quadratic optimization",
            requires=("onnx>=1.19", "onnxruntime>=1.22", "torch>=2.7"),
            key_packages=("onnx", "onnxruntime", "torch"),
        ),
    ]


@hookimpl
def drupe_model_kinds() -> list[ModelKindSpec]:
    """Contribute the kind of models that are several graphs."""
    return [
        ModelKindSpec(
            name="composite",
            target="drupe.plugins.onnx.composite:CompositeKind",
            summary="Several ONNX graphs that run one after another.",
            aliases=("CompositeModel",),
            hard_links=False,
        ),
        ModelKindSpec(
            name="distributed",
            target="drupe.plugins.onnx.distributed:DistributedKind",
            summary="One ONNX graph a rank, for processes that run at the same time.",
            aliases=("DistributedOnnxModel",),
            hard_links=False,
        ),
    ]


@hookimpl
def drupe_runtimes() -> list[RuntimeSpec]:
    """Contribute the onnx runtime."""
    return [
        RuntimeSpec(
            name="onnx",
            target="drupe.plugins.onnx.runtime:OnnxRuntime",
            summary="ONNX Runtime",
            kinds=frozenset({"onnx"}),
            accelerators=frozenset({"cpu", "gpu", "npu"}),
            capabilities=frozenset({"forward", "generate", "score"}),
            requires=("onnxruntime>=1.22",),
            key_packages=("onnxruntime", "onnxruntime-gpu"),
        ),
        RuntimeSpec(
            name="IsolatedORT",
            target="drupe.plugins.onnx.isolated:IsolatedOnnxRuntime",
            summary="ONNX Runtime of another Python environment",
            only_named=True,
            kinds=frozenset({"onnx"}),
            accelerators=frozenset({"cpu", "gpu", "npu"}),
            capabilities=frozenset({"forward", "generate", "score"}),
            key_packages=("onnxruntime", "onnxruntime-gpu"),
        ),
        RuntimeSpec(
            name="composite",
            target="drupe.plugins.onnx.composite:CompositeRuntime",
            summary="ONNX Runtime, graph after graph",
            kinds=frozenset({"composite"}),
            accelerators=frozenset({"cpu", "gpu", "npu"}),
            capabilities=frozenset({"forward"}),
            requires=("onnxruntime>=1.22",),
            key_packages=("onnxruntime", "onnxruntime-gpu"),
        ),
        RuntimeSpec(
            name="distributed",
            target="drupe.plugins.onnx.distributed:DistributedRuntime",
            summary="ONNX Runtime, all ranks in one process",
            kinds=frozenset({"distributed"}),
            accelerators=frozenset({"cpu", "gpu"}),
            capabilities=frozenset({"forward", "generate", "score"}),
            requires=("onnx>=1.19", "onnxruntime>=1.22"),
            key_packages=("onnxruntime", "onnxruntime-gpu", "onnx"),
        ),
    ]

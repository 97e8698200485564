"""OrtTransformersOptimization: ONNX Runtime's fusions for transformers, written into the graph."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, PassConfig, searchable, tell_unused
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.introspect import module_source
from drupe.core.model import Model, ModelInfo
from drupe.plugins.onnx.diffusion_fusions import CERTAIN, GPU_ONLY, made_of, no_kernel, single_numbers
from drupe.plugins.onnx.float16 import halve
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig, check_node_names
from drupe.plugins.onnx.idle import absent_operators, tell_idle
from drupe.plugins.onnx.io_types import retype

__all__ = ["OrtTransformersOptimization", "OrtTransformersOptimizationConfig"]

_FAMILIES = {
    "albert": "bert", "bart": "bart", "beit": "vit", "bert": "bert", "bloom": "gpt2", "camembert": "bert",
    "clip": "clip", "codegen": "gpt2", "deberta": "bert", "deberta-v2": "bert", "deit": "vit", "dinov2": "vit",
    "distilbert": "bert", "electra": "bert", "falcon": "gpt2", "gemma": "gpt2", "gemma2": "gpt2",
    "gemma3_text": "gpt2", "gpt2": "gpt2", "gpt_bigcode": "gpt2", "gpt_neo": "gpt2", "gpt_neox": "gpt_neox",
    "gptj": "gpt2", "granite": "gpt2", "llama": "gpt2", "longt5": "t5", "marian": "bart",
    "mbart": "bart", "mistral": "gpt2", "modernbert": "bert", "mpnet": "bert", "mt5": "t5", "nystromformer": "bert",
    "olmo": "gpt2", "olmo2": "gpt2", "opt": "gpt2", "pegasus": "bart", "phi": "gpt2", "phi3": "gpt2", "qwen2": "gpt2",
    "qwen3": "qwen3", "roberta": "bert", "segformer": "vit", "smollm3": "gpt2", "stablelm": "gpt2",
    "starcoder2": "gpt2", "swin": "swin", "t5": "t5", "vit": "vit", "whisper": "bart",
    "xlm-roberta": "bert",
}  # fmt: skip
"""A Hugging Face model_type → which of ONNX Runtime's fusions fit it.

Those for phi look for functions that no exporter of today writes, and fail without them.
"""
_INT32, _INT64 = 6, 7
"""Numbers of onnx.TensorProto.DataType."""
_HEADS = ("num_attention_heads", "n_head", "decoder_attention_heads", "num_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
"""What the configs of model families call the heads and the width."""
_SEGMENTED = frozenset({"input_ids", "attention_mask", "token_type_ids"})
"""Inputs of encoders that are built like BERT."""
_FP16 = ("force_fp32_ops", "force_fp32_nodes", "force_fp16_inputs")
_GELU = ("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasSplitGelu", "GemmFastGelu")
_NORM = ("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
         "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization")  # fmt: skip
_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "QOrderedAttention")
_MAKES: Mapping[str, tuple[str, ...]] = {
    "enable_attention": _ATTENTION,
    "enable_bias_add": ("BiasAdd",),
    "enable_bias_gelu": ("BiasGelu",),
    "enable_bias_skip_layer_norm": ("SkipLayerNormalization",),
    "enable_bias_splitgelu": ("BiasSplitGelu",),
    "enable_embed_layer_norm": ("EmbedLayerNormalization",),
    "enable_gelu": _GELU,
    "enable_gelu_approximation": ("FastGelu", "GemmFastGelu"),
    "enable_gemm_fast_gelu": ("GemmFastGelu",),
    "enable_group_norm": ("GroupNorm", "SkipGroupNorm"),
    "enable_layer_norm": _NORM,
    "enable_nhwc_conv": ("NhwcConv",),
    "enable_packed_kv": ("MultiHeadAttention",),
    "enable_packed_qkv": ("MultiHeadAttention",),
    "enable_qordered_matmul": ("QOrderedMatMul",),
    "enable_rotary_embeddings": ("RotaryEmbedding",),
    "enable_skip_group_norm": ("SkipGroupNorm",),
    "enable_skip_layer_norm": ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    "use_multi_head_attention": ("MultiHeadAttention",),
}
"""A fusion that can be asked for → operators of which the graph has some where it found its pattern."""


class OrtTransformersOptimizationConfig(GraphPassConfig):
    """Options of onnxruntime.transformers.optimizer."""

    model_type: str | None = Field(
        None,
        description="Which fusions: bert, gpt2, vit, …, or a Hugging Face model_type. Not given: by the model's own "
        "type. Empty: onnxruntime's only.",
    )
    num_heads: int = Field(0, ge=0, description="Attention heads; 0: from the model's config, or the graph.")
    hidden_size: int = Field(0, ge=0, description="Width of the model; 0: from the model's config, or the graph.")
    optimization_options: Mapping[str, Any] | None = Field(
        None, description="Single fusions by onnxruntime's names: enable_gelu, use_multi_head_attention, …"
    )
    opt_level: Literal[0, 1, 2, 99] | None = searchable(
        None, Choice(0, 1, 2, 99), doc="ONNX Runtime's own optimizations first: none, basic, extended, all."
    )
    use_gpu: bool = Field(False, description="Optimize for a GPU's kernels.")
    only_onnxruntime: bool = searchable(
        False, Choice(True, False), doc="Only ONNX Runtime's own optimizations; opt_level 1 where none is given."
    )
    float16: bool = Field(False, description="Convert to half precision afterwards.")
    keep_io_types: bool = Field(True, description="With float16: inputs and outputs stay float32.")
    force_fp32_ops: list[str] | None = Field(None, description="With float16: operators that stay float32.")
    force_fp32_nodes: list[str] | None = Field(None, description="With float16: nodes that stay float32.")
    force_fp16_inputs: Mapping[str, list[int]] | None = Field(
        None, description="With float16: operator to the indices of inputs that become half precision in any case."
    )
    use_gqa: bool = Field(
        False,
        description="GroupQueryAttention where onnxruntime's fusions for decoders make it; OnnxScriptFusion and "
        "ModelBuilder do so for more of them.",
    )
    input_int32: bool = Field(False, description="Inputs of int64, such as token ids and masks, become int32.")

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> OrtTransformersOptimizationConfig:
        for name in self.optimization_options or ():
            known = _fusion_names()
            if known and name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"optimization_options.{name}: onnxruntime has no such fusion"
                    + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}")
                )
        if self.only_onnxruntime and self.opt_level == 0:
            raise ValueError("only_onnxruntime with opt_level 0 changes nothing; give opt_level 1, 2 or 99")
        given = [name for name in _FP16 if getattr(self, name) is not None]
        if given and not self.float16:
            raise ValueError(f"{', '.join(given)}: only with float16: true")
        if self.only_onnxruntime:
            tell_unused(info, self, ("optimization_options", "use_gqa"), "only_onnxruntime leaves those fusions out")
        return self


def _fusion_names() -> frozenset[str]:
    """Return the options of the installed onnxruntime's fusions; empty where it is not installed."""
    import ast

    try:
        tree = ast.parse(module_source("onnxruntime.transformers.fusion_options").read_bytes())
    except LookupError:
        return frozenset()
    return frozenset(
        target.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    )


class OrtTransformersOptimization(GraphPass):
    """Fuses attention, norms and activations into ONNX Runtime's own operators."""

    Config: ClassVar[type[PassConfig]] = OrtTransformersOptimizationConfig
    version = 3

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse a family without fusions."""
        planned = super().plan(info, config, accelerator)
        family = config.model_type
        if family and family not in _known_families() and family not in _FAMILIES:
            raise ConfigError(
                f"{self.spec.name}: onnxruntime has no fusions for model_type {family!r}; "
                f"it has {', '.join(sorted(_known_families()))}"
            )
        if accelerator.device == "cpu":
            for name in CERTAIN.get(family or "", ()):
                if (config.optimization_options or {}).get(name):
                    raise ConfigError(no_kernel(self.spec.name, name, GPU_ONLY[name], accelerator))
        own = _told(info).get("model_type")
        if family is None and not config.only_onnxruntime and own:
            self._mapped(str(own))
        if info.attributes.get("quantization") and config.float16:
            raise ConfigError(
                f"{self.spec.name}: float16 is for float32 graphs; this one is quantized "
                f"({info.attributes['quantization']})"
            )
        return planned

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """float16 where asked."""
        return {"precision": "fp16"} if config.float16 else {}

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: OrtTransformersOptimizationConfig, context: PassContext
    ) -> Any:
        """Optimize, then convert."""
        from onnxruntime.transformers.fusion_options import AttentionOpType, FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        # The graphs of a composite lie in folders of their own, the config beside those.
        described = _described(path.parent) or _described(model.folder) or _told(model)
        family = self._family(config, described, proto)
        only = config.only_onnxruntime or family is None
        level = config.opt_level if config.opt_level is not None else (1 if only else None)
        options = FusionOptions(family or "bert")
        for name, value in (config.optimization_options or {}).items():
            setattr(options, name, AttentionOpType(value) if name == "attention_op_type" and value else value)
        cpu = context.accelerator.device == "cpu"
        for name in GPU_ONLY if cpu else ():
            if hasattr(options, name) and not (config.optimization_options or {}).get(name):
                setattr(options, name, False)
        if config.use_gqa:
            options.attention_op_type = AttentionOpType.GroupQueryAttention
        before = len(proto.graph.node)
        heads = config.num_heads or _first(described, _HEADS)

        def fused(options: Any) -> Any:
            try:
                with single_numbers():
                    return optimized(options)
            except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                # Faults of the library on graphs that it does not foresee.
                raise PassError(
                    f"{self.spec.name}: onnxruntime's fusions for {family} fail on this graph "
                    f"({type(error).__name__}: {error}); give another model_type, or only_onnxruntime: true"
                ) from error

        def optimized(options: Any) -> Any:
            return optimize_model(
                # The file: ONNX Runtime fails on some graphs when it gets them as bytes.
                str(path),
                model_type=family or "bert",
                num_heads=heads,
                # Either says nothing without the other.
                hidden_size=config.hidden_size or (_first(described, _WIDTHS) if heads else 0),
                optimization_options=options,
                opt_level=level,
                use_gpu=config.use_gpu,
                only_onnxruntime=only,
                provider=context.accelerator.execution_provider if config.use_gpu else None,
            ).model

        result = fused(options)
        if lost := _lost(proto, result):
            # Some decoders' attention is taken for one without a past, whose values then feed nothing.
            context.log.warning(
                "%s: onnxruntime's attention fusion loses the input %s of %s; its attention is left as it is",
                self.spec.name,
                lost[0],
                path.parent.name if model.kind == "composite" else path.name,
            )
            options.enable_attention = False
            result = fused(options)
            if lost := _lost(proto, result):
                raise PassError(
                    f"{self.spec.name}: onnxruntime's fusions lose the inputs {', '.join(lost)}; set only_onnxruntime"
                )
        kinds = {node.op_type for node in result.graph.node}
        made = made_of(result)
        for name, kind in GPU_ONLY.items() if cpu else ():
            if kind in made:
                raise PassError(no_kernel(self.spec.name, name, kind, context.accelerator))
        if not only and not heads and "Softmax" in kinds and not any("Attention" in kind for kind in kinds):
            context.log.warning(
                "%s: attention is not fused, and nothing tells how many heads it has: give num_heads and hidden_size",
                self.spec.name,
            )
        idle = [] if only else _idle(config, kinds)
        # onnxruntime's own way takes away casts that unfused nodes still read.
        if config.input_int32 and not retype(result, lambda _: True, _INT64, _INT32, inputs_only=True):
            idle.append("input_int32")
        if config.float16:
            check_node_names(self.spec.name, result, "force_fp32_nodes", config.force_fp32_nodes)
            idle += absent_operators(
                result, force_fp32_ops=config.force_fp32_ops, force_fp16_inputs=config.force_fp16_inputs
            )
            result = halve(
                self.spec.name,
                result,
                context,
                symbolic=True,
                keep_io_types=config.keep_io_types,
                op_block_list=config.force_fp32_ops,
                node_block_list=config.force_fp32_nodes,
                force_fp16_inputs=dict(config.force_fp16_inputs) if config.force_fp16_inputs else None,
            )
        hint = "OnnxScriptFusion and ModelBuilder make GroupQueryAttention" if "use_gqa" in idle else ""
        tell_idle(self.spec.name, path.name, idle, context, hint)
        context.report["graph"] = {"nodes": [before, len(result.graph.node)], "fused": _fused(result)}
        return result

    def _family(
        self, config: OrtTransformersOptimizationConfig, described: Mapping[str, Any], proto: Any
    ) -> str | None:
        """Return the family of fusions, None for onnxruntime's own optimizations alone."""
        if config.model_type is not None:
            return _FAMILIES.get(config.model_type, config.model_type) or None
        if config.only_onnxruntime:
            return None
        if own := described.get("model_type"):
            return self._mapped(str(own))
        if {value.name for value in proto.graph.input} >= _SEGMENTED:
            # Texts of two segments are what BERT and its kin read.
            return "bert"
        raise ConfigError(
            f"{self.spec.name}: neither a config.json beside the graph nor the input model tells what the model is; "
            f'give model_type, such as "model_type": "bert" ({_listed()}), or "only_onnxruntime": true'
        )

    def _mapped(self, own: str) -> str:
        """Return the family of a Hugging Face model_type."""
        if own in _FAMILIES:
            return _FAMILIES[own]
        raise ConfigError(
            f"{self.spec.name}: no fusions are known for a model of type {own}; give model_type of a model that it is "
            f'built like ({_listed()}), or "only_onnxruntime": true'
        )


def _idle(config: OrtTransformersOptimizationConfig, kinds: Collection[str]) -> list[str]:
    """Return the fusions asked for by name that left nothing in a graph. kinds: its operators."""
    told = config.optimization_options or {}
    found = [
        f"optimization_options.{name}"
        for name, made in _MAKES.items()
        if told.get(name) is True and not any(kind in kinds for kind in made)
    ]
    wanted = told.get("attention_op_type")
    if wanted is not None and wanted not in kinds:
        found.append("optimization_options.attention_op_type")
    if config.use_gqa and "GroupQueryAttention" not in kinds:
        found.append("use_gqa")
    return found


def _listed() -> str:
    return ", ".join(sorted(_known_families()))


def _known_families() -> frozenset[str]:
    """Return the families that the installed onnxruntime has fusions for."""
    import ast

    try:
        tree = ast.parse(module_source("onnxruntime.transformers.optimizer").read_bytes())
    except LookupError:
        return frozenset(_FAMILIES.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names == ["MODEL_TYPES"]:
                return frozenset(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    return frozenset(_FAMILIES.values())


def _described(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    return data if isinstance(data, dict) else {}


def _told(model: Model | ModelInfo) -> Mapping[str, Any]:
    """Return what the model's attributes tell in place of a config.json."""
    own = model.attributes.get("model_type")
    return {**({"model_type": own} if own else {}), **(model.attributes.get("model_attributes") or {})}


def _lost(before: Any, after: Any) -> list[str]:
    """Return the inputs that a graph has no longer."""
    there = {value.name for value in after.graph.input}
    weights = {tensor.name for tensor in before.graph.initializer}
    return [value.name for value in before.graph.input if value.name not in there | weights]


def _first(described: Mapping[str, Any], names: Sequence[str]) -> int:
    # Models of stages have a list, a number for each; the graph tells those.
    return next((described[name] for name in names if isinstance(described.get(name), int)), 0)


def _fused(proto: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in proto.graph.node:
        if node.domain == "com.microsoft" or node.op_type in ("LayerNormalization", "SimplifiedLayerNormalization"):
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return dict(sorted(found.items()))

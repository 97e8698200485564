"""ModelBuilder: a Hugging Face decoder → a model for onnxruntime-genai, quantized while it is built.

The installed builder takes unknown and old option names without a word and builds its default. So names are checked
against its source before work starts, Olive's `int4_*` names are mapped to today's, and the built graph is checked for
what was asked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, Ordered, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.genai.architectures import WRONG, buildable, read_config, readable_source, slides_unsaid
from drupe.plugins.genai.built_graph import check_graph, without_commit
from drupe.plugins.genai.corrections import corrected_builder
from drupe.plugins.genai.providers import BUILDABLE, builder_name
from drupe.plugins.genai.uneven import uneven_attention

__all__ = ["ModelBuilder", "ModelBuilderConfig"]

_OLDER = {
    "int4_block_size": "block_size",
    "int4_accuracy_level": "accuracy_level",
    "int4_is_symmetric": "is_symmetric",
    "int4_op_types_to_quantize": "op_types_to_quantize",
    "int4_nodes_to_exclude": "nodes_to_exclude",
    "int4_algo_config": "algo_config",
}
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_OWN = frozenset(
    {
        "block_size", "accuracy_level", "is_symmetric", "op_types_to_quantize", "nodes_to_exclude", "algo_config",
        "matmul_mixed_precision", "use_qdq", "shared_embeddings", "exclude_embeds", "exclude_lm_head", "prune_lm_head",
        "include_hidden_states", "enable_cuda_graph", "enable_webgpu_graph", "filename", "adapter_path", "hf_token",
        "hf_remote", "config_only",
    }
)  # fmt: skip
"""Options that are fields here, or that Drupe itself sets."""
_OTHERWISE = (
    "export the float model with OnnxConversion (task: text-generation-with-past) and quantize the graph, with "
    "OnnxBlockWiseRtnQuantization for example"
)
_READ_QUANTIZED = {"gptq", "awq", "olive", "quark"}


class ModelBuilderConfig(PassConfig):
    """Options of the builder; what is left out stays the builder's own default."""

    precision: Literal["int4", "int8", "fp16", "bf16", "fp32"] = searchable(
        "int4", Choice("int4", "int8"), doc="Precision of the weights (int4, int8) or of everything (fp16, bf16, fp32)."
    )
    block_size: Literal[16, 32, 64, 128, 256] | None = searchable(
        None, Ordered(32, 64, 128), doc="Weights that share a scale. The builder's default is 32."
    )
    algo_config: (
        Literal["default", "rtn", "rtn_last", "k_quant", "k_quant_last", "k_quant_mixed", "k_quant_linear"] | None
    ) = searchable(
        None, Choice("default", "rtn", "k_quant", "k_quant_mixed"), doc="How weights are rounded, and which get 8 bits."
    )
    accuracy_level: Literal[1, 2, 3, 4] | None = Field(
        None,
        description="Least precision of activations: 1 float32, 2 float16, 3 bfloat16, 4 int8 (default on a CPU).",
    )
    is_symmetric: bool | None = Field(None, description="Whether blocks have no zero point. The default is true.")
    op_types_to_quantize: list[Literal["MatMul", "Gather"]] | None = Field(
        None, description="Which operators are quantized."
    )
    nodes_to_exclude: list[str] | None = Field(None, description="Names of nodes that stay in floating point.")
    matmul_mixed_precision: str | None = Field(
        None, description="Other bits for some MatMuls, as the builder reads it: last_matmul:int8."
    )
    use_8bits_matmul: bool | None = Field(None, description="Olive's spelling of matmul_mixed_precision with 8 bits.")
    use_qdq: bool | None = Field(None, description="QuantizeLinear/DequantizeLinear pairs instead of MatMulNBits.")
    shared_embeddings: bool | None = Field(None, description="One table for embedding and head.")
    exclude_embeds: bool | None = Field(None, description="Leave the embedding out; the model takes inputs_embeds.")
    exclude_lm_head: bool | None = Field(None, description="Leave the head out; the model gives hidden states.")
    prune_lm_head: bool | None = Field(None, description="Logits of the last token only.")
    include_hidden_states: bool | None = Field(None, description="Give hidden states beside the logits.")
    enable_cuda_graph: bool | None = Field(None, description="Let CUDA capture the decoding step as a graph.")
    enable_webgpu_graph: bool | None = Field(None, description="Let WebGPU capture the decoding step as a graph.")
    filename: str = Field("model.onnx", pattern=r"^[\w.-]+\.onnx$", description="Name of the model file.")
    metadata_only: bool = Field(False, description="Write genai_config.json and the tokenizer, but no model.")
    use_adapter: bool = Field(
        False, description="Keep an unmerged adapter as separate, also quantized MatMuls; merging first is better."
    )
    search: Mapping[str, Any] | None = Field(
        None, description="Generation defaults for genai_config.json: max_length, temperature, top_k, …"
    )
    extra_options: Mapping[str, Any] = Field(
        default_factory=dict, description="Any other option of the installed builder, by its name."
    )

    @model_validator(mode="before")
    @classmethod
    def _older_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        out = dict(values)
        for older, now in _OLDER.items():
            if older in out:
                if now in out:
                    raise ValueError(f"{older} and {now} are the same option; give one of them")
                out[now] = out.pop(older)
        out["precision"] = _PRECISIONS.get(str(out.get("precision")), out.get("precision", "int4"))
        extra = dict(out.get("extra_options") or {})
        for older, now in {**_OLDER, **{name: name for name in cls.model_fields}}.items():
            if older in extra and now in _OWN and now in cls.model_fields:
                if now in out:
                    raise ValueError(f"extra_options.{older} and {now} are the same option; give one of them")
                out[now] = extra.pop(older)
        out["extra_options"] = extra
        for name in ("op_types_to_quantize", "nodes_to_exclude"):
            if isinstance(out.get(name), str):
                out[name] = (
                    [part for part in out[name].replace("/M", " M").replace(",", " ").split() if part]
                    if (name == "op_types_to_quantize")
                    else out[name].split(",")
                )
        return out

    @model_validator(mode="after")
    def _known_options(self) -> ModelBuilderConfig:
        known = known_options()
        for name in self.extra_options:
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"extra_options.{name}: the installed model builder has no such option"
                    + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}")
                )
        return self


def known_options() -> frozenset[str]:
    """Return the names of the options that the installed builder reads; empty where it is not installed."""
    from drupe.core.introspect import mapping_keys

    try:
        names = mapping_keys("onnxruntime_genai.models", "extra_options")
    except LookupError:
        return frozenset(_OWN)
    return frozenset(name for name in names if not name.startswith("_") and name != "hf_details")


class ModelBuilder(Pass):
    """Builds a model for onnxruntime-genai with the library's own model builder."""

    Config: ClassVar[type[PassConfig]] = ModelBuilderConfig
    version = 2

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse what the builder would build wrongly or what would not run."""
        planned = super().plan(info, config, accelerator)
        provider = builder_name(accelerator)
        if config.precision not in BUILDABLE[provider]:
            raise ConfigError(
                f"ModelBuilder: a {config.precision} model does not run on {provider}; "
                f"precisions that do: {', '.join(BUILDABLE[provider])}"
            )
        if info.attributes.get("adapter") and not config.use_adapter:
            raise ConfigError(
                "ModelBuilder: the model has an unmerged adapter; put MergeAdapterWeights before it, "
                "or set use_adapter to keep it separate"
            )
        # The architecture decides, where it is known: public workflows give decoders any task.
        architecture = info.attributes.get("architecture")
        if architecture and not architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
            raise ConfigError(f"ModelBuilder builds decoders that generate text; the model is a {architecture}")
        known = buildable()
        if architecture and known and architecture not in known and not config.metadata_only:
            raise ConfigError(
                f"ModelBuilder: the installed onnxruntime-genai builds no {architecture}; {_OTHERWISE}; it builds "
                f"{', '.join(sorted(known))}"
            )
        if architecture in WRONG and not config.metadata_only:
            raise ConfigError(f"ModelBuilder: the builder {WRONG[architecture]} and gives other logits; {_OTHERWISE}")
        if info.attributes.get("mixed_precision"):
            raise ConfigError(
                "ModelBuilder: layers were chosen to get more bits, and no quantizer has given them; "
                "put Gptq or Rtn between SelectiveMixedPrecision and ModelBuilder"
            )
        _check_quantized(info.attributes)
        _check_combination(config)
        return ModelInfo(planned.kind, _attributes(info.attributes, config))

    def run(self, model: Model, config: ModelBuilderConfig, context: PassContext) -> Model:
        """Build below context.output_dir."""
        from onnxruntime_genai.models import builder

        from drupe.plugins.huggingface.scrub import scrub_folder

        provider = builder_name(context.accelerator)
        _check_blocks(model.folder, config)
        options = _builder_options(config)
        if uneven := uneven_attention(model.folder):
            if options.get("fuse_qkv") == "true":
                raise ConfigError(
                    f"ModelBuilder: fuse_qkv is true, but the projections of {uneven} differ in bits or group_size and "
                    "can't be joined; leave it out"
                )
            options["fuse_qkv"] = "false"
        if config.shared_embeddings is None and (option := _needs_two_tables(config)):
            context.log.info("%s: embedding and head are two tables, where the model shares one", option)
            options["shared_embeddings"] = "false"
        if slides_unsaid(read_config(model.folder)) and "windowed_kv_cache" in known_options():
            # The builder itself gives these full caches, which what comes after it counts on: a cache of the window's
            # length has to be there before the first token.
            options.setdefault("windowed_kv_cache", "false")
        if context.allow and "remote-code" in context.allow:
            options["hf_remote"] = "true"
        if config.use_adapter and model.attributes.get("adapter"):
            options["adapter_path"] = str(model.folder / str(model.attributes["adapter"]))
        scratch = context.output_dir.parent / "builder-cache"
        source = readable_source(model.folder, context.output_dir.parent / "builder-source")
        arguments = ("", str(source), str(context.output_dir), config.precision, provider, str(scratch))
        context.progress(0, 1, "building")
        with _prints_to_log(context):
            parsed = builder.parse_extra_options(*arguments, [f"{key}={value}" for key, value in options.items()])
            try:
                with corrected_builder(builder):
                    builder.create_model(*arguments, **parsed)
            except (AttributeError, KeyError, IndexError, NotImplementedError, TypeError, ValueError) as error:
                # Faults of the library on what it does not foresee.
                raise PassError(
                    f"ModelBuilder: onnxruntime-genai's builder failed on this {_named(model)} "
                    f"({type(error).__name__}: {error}); {_OTHERWISE}"
                ) from error
        context.progress(1, 1, "built")
        _finish_config(context.output_dir, config)
        scrub_folder(context.output_dir)
        if not config.metadata_only:
            graph = without_commit(context.output_dir / config.filename)
            context.report["graph"] = check_graph(graph, config)
        return Model.from_dir("genai", context.output_dir, _attributes(model.attributes, config))


def _named(model: Model) -> str:
    return f"{model.attributes.get('quantization') or 'float'} {model.attributes.get('architecture') or 'model'}"


_KEPT = ("task", "architecture", "model_type", "split", "split_assignments")
"""Attributes of the source that hold for the built model as well."""


def _attributes(source: Mapping[str, Any], config: ModelBuilderConfig) -> dict[str, Any]:
    kept = {key: value for key, value in source.items() if key in _KEPT}
    quantized = {"quantization": config.precision} if config.precision in ("int4", "int8") else {}
    return {**kept, "precision": config.precision, **quantized}


def _check_quantized(attributes: Mapping[str, Any]) -> None:
    """Refuse quantized inputs that the builder reads wrongly or not at all."""
    quantization = attributes.get("quantization")
    if not quantization:
        return
    told: Mapping[str, Any] = quantization if isinstance(quantization, Mapping) else {"quant_method": quantization}
    data = {**(attributes.get("quantization_scheme") or {}), **told}
    method = str(data.get("quant_method", data.get("method", ""))).lower()
    if method not in _READ_QUANTIZED:
        raise ConfigError(
            f"ModelBuilder reads models quantized by {', '.join(sorted(_READ_QUANTIZED))}; this one is {method}; "
            "export it as auto_gptq or auto_awq, or give the float model"
        )
    if method == "gptq" and str(data.get("checkpoint_format", "gptq")) == "gptq_v2":
        raise ConfigError(
            "ModelBuilder takes a gptq_v2 checkpoint for gptq and builds garbage; save it in the format gptq (v1)"
        )
    if method == "gptq" and data.get("desc_act") and data.get("sym") is False:
        raise ConfigError(
            "ModelBuilder: GPTQ with desc_act and asymmetric zero points gives garbage on the CPU; quantize with "
            "sym: true or desc_act: false"
        )


def _check_combination(config: ModelBuilderConfig) -> None:
    """Refuse combinations that build a model which does not load (seen with onnxruntime-genai 0.18)."""
    if config.precision == "int8" and config.use_qdq:
        raise ConfigError("ModelBuilder: int8 can't be built with use_qdq; leave it out, or use int4")
    if config.shared_embeddings and (option := _needs_two_tables(config)):
        raise ConfigError(
            f"ModelBuilder: {option} with shared_embeddings: true builds a model that does not load; leave "
            "shared_embeddings out, or set algo_config to rtn or k_quant"
        )
    if config.precision not in ("int4", "int8"):
        wrong = [
            name
            for name in ("block_size", "algo_config", "accuracy_level", "is_symmetric", "op_types_to_quantize")
            if getattr(config, name) is not None
        ]
        if wrong:
            raise ConfigError(
                f"ModelBuilder: {', '.join(wrong)} has no effect at precision {config.precision}; "
                "it is for int4 and int8"
            )


def _needs_two_tables(config: ModelBuilderConfig) -> str | None:
    """Return the option with which a table that serves as embedding and as head gives a model that does not load."""
    if config.precision == "int4" and config.use_qdq:
        return "use_qdq"
    if config.algo_config not in (None, "default") or config.precision not in ("int4", "int8"):
        return None
    if config.is_symmetric is False:
        return "is_symmetric: false"
    return "matmul_mixed_precision" if config.matmul_mixed_precision else None


def _check_blocks(folder: Path, config: ModelBuilderConfig) -> None:
    """Refuse rows with an odd number of blocks: two zero points share a byte, and rtn and k_quant lay them out by rows
    (seen with onnxruntime 1.32)."""
    offset = "k_quant" in (config.algo_config or "") or (config.algo_config == "rtn" and config.is_symmetric is False)
    path = folder / "config.json"
    if config.precision != "int4" or not offset or not path.is_file():
        return
    shape = json.loads(path.read_text(encoding="utf-8"))
    shape = shape.get("text_config") or shape
    block = config.block_size or 32
    for name in ("hidden_size", "intermediate_size"):
        columns = shape.get(name)
        if isinstance(columns, int) and -(-columns // block) % 2:
            raise ConfigError(
                f"ModelBuilder: {config.algo_config} with zero points needs an even number of blocks in a row; "
                f"{name} {columns} makes {-(-columns // block)} blocks of {block}; "
                "take another block_size, is_symmetric: true with rtn, or the default algorithm"
            )


def _builder_options(config: ModelBuilderConfig) -> dict[str, Any]:
    """Return the builder's KEY=VALUE options, with lists as it splits them."""
    found: dict[str, Any] = {}
    for name in sorted(_OWN & set(ModelBuilderConfig.model_fields)):
        value = getattr(config, name)
        if value is None or (name == "filename" and value == "model.onnx"):
            continue
        found[name] = _text(name, value)
    if config.use_8bits_matmul:
        found["algo_config"] = "k_quant_mixed"
    if config.metadata_only:
        found["config_only"] = "true"
    found.update({name: _text(name, value) for name, value in config.extra_options.items()})
    return found


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ("/" if name == "op_types_to_quantize" else ",").join(map(str, value))
    return str(value)


def _finish_config(folder: Path, config: ModelBuilderConfig) -> None:
    path = folder / "genai_config.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    if config.search:
        unknown = set(config.search) - set(data["search"])
        if unknown:
            raise ConfigError(
                f"ModelBuilder: search.{sorted(unknown)[0]} is no generation option of onnxruntime-genai; "
                f"it has {', '.join(sorted(data['search']))}"
            )
        data["search"].update(config.search)
    path.write_text(json.dumps(data, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _prints_to_log(context: PassContext) -> Iterator[None]:
    """Send what the builder prints to the job's log."""

    class Lines:
        def write(self, text: str) -> int:
            if text.strip():
                context.log.info("%s", text.rstrip())
            return len(text)

        def flush(self) -> None:
            """Lines are written as they come."""

    with contextlib.redirect_stdout(Lines()):
        yield

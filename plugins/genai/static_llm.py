"""StaticLLM: a decoder whose graphs have fixed lengths, for devices that compile for one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.genai.padding import padding_token
from drupe.plugins.onnx.decoding import PAST
from drupe.plugins.onnx.graph_pass import check_loads
from drupe.plugins.onnx.graphs import byte_size, companions, graph_paths, save_graph, scrub_graph
from drupe.plugins.onnx.inputs import graph_inputs
from drupe.plugins.onnx.llm_pipeline import GROUPS, read_settings, write_pipeline

__all__ = ["StaticLLM", "StaticLLMConfig"]

_PAST_LENGTH, _TOTAL_LENGTH = 5, 6
"""Which inputs of GroupQueryAttention are the lengths before a step and after it (com.microsoft, version 1)."""


class StaticLLMConfig(PassConfig):
    """The lengths."""

    batch_size: int = Field(1, ge=1, description="Rows of a batch; onnxruntime-genai runs such graphs with 1 only.")
    context_length: int = Field(64, ge=2, description="Tokens of a prompt that are processed at once.")
    group_session_options: dict[str, Any] | None = Field(
        None, description="Session options of the context and iterator graphs, as genai_config.json takes them."
    )


class StaticLLM(Pass):
    """Makes of each graph that holds layers two of fixed lengths, which share their weights: `context` takes
    context_length tokens of a prompt, `iterator` one token. Embedding and head stay as they are where SplitModel made
    pieces of them (CaptureSplitInfo with unique_embeds_lm_head_splits).

    Rules: 1. onnxruntime-genai runs the result as a pipeline and gives the tokens that it gives for the source. 2. The
    past keys and values stay as long as the generation may become: attention takes how many of them count as inputs.
    3. A prompt is filled up to whole chunks with a token that no prompt has.
    """

    Config: ClassVar[type[PassConfig]] = StaticLLMConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse what onnxruntime-genai does not run as a pipeline."""
        planned = super().plan(info, config, accelerator)
        if config.batch_size != 1:
            raise ConfigError(
                f"{self.spec.name}: batch_size is {config.batch_size}; onnxruntime-genai runs graphs of fixed lengths "
                "with a batch of 1 only"
            )
        if info.attributes.get("llm_pipeline"):
            raise ConfigError(f"{self.spec.name}: the model has fixed lengths already")
        if info.kind == "composite" and not info.attributes.get("genai"):
            raise ConfigError(
                f"{self.spec.name} takes a decoder of onnxruntime-genai, whole or in pieces; put ModelBuilder before "
                "it, and SplitModel between them for pieces"
            )
        return planned.with_(**dict.fromkeys(_GONE), llm_pipeline=True)

    def run(self, model: Model, config: StaticLLMConfig, context: PassContext) -> Model:
        """Write the graphs of a pipeline below context.output_dir."""
        import onnx

        settings = read_settings(model.folder)
        longest = int(settings["model"].get("context_length") or 0)
        if config.context_length > longest:
            raise ConfigError(
                f"{self.spec.name}: context_length is {config.context_length}; the model's context has {longest} tokens"
            )
        paths = graph_paths(model)
        holding = [_holds_layers(path) for path in paths]
        layers = [number for number, holds in enumerate(holding) if holds]
        if not layers or not all(holding[layers[0] : layers[-1] + 1]):
            raise PassError(f"{self.spec.name}: expected graphs with layers in a row that take past keys and values")
        groups: dict[str, list[str]] = {group: [] for group in GROUPS}
        lengths: dict[str, Any] = {}
        for number, path in enumerate(paths):
            context.progress(number, len(paths), f"fixing {path.parent.name}/{path.name}")
            proto = onnx.load(str(path))
            scrub_graph(proto)
            if number in layers:
                suffix = f"_{number - layers[0]}" if len(layers) > 1 else ""
                lengths.update(self._two(proto, config, context, suffix, whole=len(paths) == 1))
                groups["context"].append(f"context{suffix}")
                groups["iterator"].append(f"iterator{suffix}")
                continue
            first = 0 if number < layers[0] else layers[-1] + 1
            group, others = ("lm_head", len(paths) - first) if first else ("embeddings", layers[0])
            name = group if others == 1 else f"{group}_{number - first}"
            groups[group].append(name)
            save_graph(proto, context.output_dir, f"{name}.onnx", external=True)
        companions(model.folder, context.output_dir)
        self._settings(settings, config, lengths, context)
        write_pipeline(context.output_dir, settings, groups, session_options=config.group_session_options)
        context.report["pipeline"] = groups
        kept = {key: value for key, value in model.attributes.items() if key not in _GONE}
        return Model.from_dir("genai", context.output_dir, {**kept, "llm_pipeline": True})

    def _two(
        self, proto: Any, config: StaticLLMConfig, context: PassContext, suffix: str, *, whole: bool
    ) -> dict[str, str]:
        """Write the two graphs of a piece, and return what genai_config.json calls the lengths → the graph's inputs."""
        import onnx

        if whole:
            proto = _without_mask(proto)
        lengths = self._lengths(proto.graph)
        batch, sequence = self._axes(proto.graph)
        # Saving takes out what is written beside the graph.
        size = byte_size(proto)
        saved = save_graph(proto, context.output_dir, f"transformer{suffix}.onnx", external=True)
        for group, length in (("context", config.context_length), ("iterator", 1)):
            # The file with the weights is named, not read: both graphs use it.
            fixed = onnx.load(str(saved), load_external_data=False)
            self._fix(fixed.graph, {batch: config.batch_size, sequence: length})
            written = context.output_dir / f"{group}{suffix}.onnx"
            onnx.save(fixed, str(written))
            check_loads(self.spec.name, written, size, {}, context)
        saved.unlink()
        return lengths

    def _lengths(self, graph: Any) -> dict[str, str]:
        """Return the graph's inputs of past and total length. Raises PassError where it counts them itself."""
        nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
        inputs = {value.name for value in graph_inputs(graph)}
        names = {(node.input[_PAST_LENGTH], node.input[_TOTAL_LENGTH]) for node in nodes}
        if not nodes:
            raise PassError(
                f"{self.spec.name}: the graph has no GroupQueryAttention, with which onnxruntime-genai runs fixed "
                "lengths; build it with ModelBuilder"
            )
        if len(names) > 1 or not set(next(iter(names))) <= inputs or "attention_mask" in inputs:
            raise PassError(
                f"{self.spec.name}: attention counts the tokens from an attention mask, whose length is not fixed; put "
                "GraphSurgeries with the surgeon AttentionMaskToSequenceLengths before SplitModel"
            )
        if "position_ids" in inputs:
            raise PassError(
                f"{self.spec.name}: the graph takes position_ids, which onnxruntime-genai counts wrongly after a "
                "prompt that was filled up; build it so that attention applies the positions"
            )
        past, total = next(iter(names))
        return {"past_sequence_length": past, "total_sequence_length": total}

    def _axes(self, graph: Any) -> tuple[str, str]:
        """Return the names of the batch's and the sequence's axis."""
        for value in graph_inputs(graph):
            dims = value.type.tensor_type.shape.dim
            if PAST.search(value.name) or len(dims) < 2 or value.name == self._lengths(graph)["past_sequence_length"]:
                continue
            if dims[0].dim_param and dims[1].dim_param:
                return str(dims[0].dim_param), str(dims[1].dim_param)
            raise PassError(f"{self.spec.name}: the input {value.name} has fixed lengths already")
        raise PassError(f"{self.spec.name}: no input of the graph has an axis for the tokens")

    def _fix(self, graph: Any, lengths: Mapping[str, int]) -> None:
        from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

        for name, length in lengths.items():
            make_dim_param_fixed(graph, name, length)
        for value in graph_inputs(graph):
            loose = [dim.dim_param for dim in value.type.tensor_type.shape.dim if not dim.HasField("dim_value")]
            if loose and not PAST.search(value.name):
                raise PassError(
                    f"{self.spec.name}: the axis {loose[0]} of {value.name} has no fixed length; the graph's axes of "
                    f"batch and tokens are called {', '.join(lengths)}"
                )

    def _settings(
        self, data: dict[str, Any], config: StaticLLMConfig, lengths: Mapping[str, str], context: PassContext
    ) -> None:
        """Say in genai_config.json how a prompt is cut into chunks."""
        decoder = data["model"]["decoder"]
        inputs = {key: name for key, name in decoder["inputs"].items() if key not in ("attention_mask", "position_ids")}
        decoder["inputs"] = {**inputs, **lengths}
        decoder["sliding_window"] = {
            "window_size": config.context_length,
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": False,
        }
        search = data.setdefault("search", {})
        search["past_present_share_buffer"] = True
        search["num_beams"] = search["num_return_sequences"] = 1
        token = padding_token(context.output_dir, data["model"])
        if token is None:
            context.log.warning(
                "no token is known that prompts don't have: one with the token %s is cut there",
                data["model"].get("pad_token_id"),
            )
        else:
            data["model"]["pad_token_id"] = token


_GONE = ("components", "outputs", "genai", "split", "split_assignments", "onnx_file")
"""Attributes of the source that don't hold for the result."""


def _holds_layers(path: Path) -> bool:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return any(PAST.search(value.name) for value in graph.input)


def _without_mask(proto: Any) -> Any:
    """Return a whole decoder that takes the lengths in place of an attention mask, where it takes one."""
    import onnx_ir as ir

    from drupe.core.registry import get_registry

    names: Sequence[str] = [value.name for value in proto.graph.input]
    if "attention_mask" not in names:
        return proto
    tree = ir.from_proto(proto)
    surgeon = get_registry().create("drupe_surgeons", "AttentionMaskToSequenceLengths")
    surgeon.operate(tree, type(surgeon).Config())
    tree.graph.sort()
    return ir.to_proto(tree)

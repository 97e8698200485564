"""The base of passes that rewrite a graph: read, rewrite, check, write; what lies beside the graph is kept.

Such a pass takes `onnx` models and folders for onnxruntime-genai alike, since both hold graphs; of the latter each
graph that genai_config.json names is rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, DrupeError, EvaluationError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.extensions import register_extensions
from drupe.plugins.onnx.graphs import byte_size, external_files, graph_paths, save_graph, scrub_graph, unknown_operators
from drupe.plugins.onnx.plain import read_plain

__all__ = ["GraphPass", "GraphPassConfig", "check_loads", "check_node_names"]

_LOADED = 1 << 30
"""Graphs up to so many bytes are loaded by ONNX Runtime as a check."""


class GraphPassConfig(PassConfig):
    """How the graph is written."""

    save_as_external_data: bool = Field(
        False, description="Keep the weights in a file of their own, as the input does or the size demands anyway."
    )
    all_tensors_to_one_file: bool = Field(True, description="One file for all weights; the only way that is written.")
    external_data_name: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="Name of the file with the weights; default: the graph's, with .data."
    )
    size_threshold: int = Field(1024, ge=0, description="Bytes from which a tensor goes to the file with the weights.")
    convert_attribute: bool = Field(False, description="Tensors in attributes of nodes go to that file as well.")


class GraphPass(Pass):
    """Subclasses implement `rewrite`, and `outcome` where the result has other attributes.

    replaces_operators: the input may hold operators that ONNX Runtime lacks, since the pass may take them out.
    takes_quantized: the input may be quantized already.
    """

    Config: ClassVar[type[PassConfig]] = GraphPassConfig
    replaces_operators: ClassVar[bool] = False
    takes_quantized: ClassVar[bool] = True

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Check how the graph is to be written; say what the result is like."""
        if not self.takes_quantized and (quantization := info.attributes.get("quantization")):
            raise ConfigError(
                f"{self.spec.name} quantizes float graphs; this one is quantized already ({quantization})"
            )
        planned = super().plan(info, config, accelerator)
        if not config.all_tensors_to_one_file:
            raise ConfigError(f"{self.spec.name} writes weights to one file; leave all_tensors_to_one_file true")
        return planned.with_(**self.outcome(info.attributes, config))

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """Return the attributes that the result has besides its input's; None removes one."""
        return {}

    def rewrite(self, proto: Any, path: Path, model: Model, config: Any, context: PassContext) -> Any:
        """Return the new onnx.ModelProto. proto: the graph with its weights; path: its file; model: the whole input."""
        raise NotImplementedError

    def run(self, model: Model, config: Any, context: PassContext) -> Model:
        """Rewrite each graph below context.output_dir."""
        paths = graph_paths(model)
        if config.external_data_name and len(paths) > 1:
            raise ConfigError(
                f"{self.spec.name}: external_data_name names one file, and the model has {len(paths)} graphs"
            )
        attributes = {**model.attributes, **self.outcome(model.attributes, config)}
        replaced: list[Path] = []
        for number, path in enumerate(paths):
            context.progress(number, len(paths), f"rewriting {path.name}")
            beside = external_files(path)
            replaced += [path, *beside]
            read, plain = read_plain(path, context.output_dir.parent)
            self._check_operators(read, model, context)
            proto = self._rewritten(read, plain, model, config, context)
            scrub_graph(proto)
            # Saving takes out what is written beside the graph.
            size = byte_size(proto)
            written = save_graph(
                proto,
                context.output_dir,
                path.relative_to(model.folder).as_posix(),
                external=config.save_as_external_data or bool(beside),
                data_name=config.external_data_name,
                threshold=config.size_threshold,
                attributes=config.convert_attribute,
            )
            del proto
            # What a model's own library brings, whichever it is, is left to it.
            if not model.attributes.get("use_ort_extensions"):
                check_loads(self.spec.name, written, size, attributes, context)
        context.progress(len(paths), len(paths), "rewritten")
        return model.derive(
            add_dir=context.output_dir,
            remove=[path.relative_to(model.folder).as_posix() for path in replaced],
            attributes=self.outcome(model.attributes, config),
        )

    def _rewritten(self, proto: Any, path: Path, model: Model, config: Any, context: PassContext) -> Any:
        """Rewrite; faults of a library on graphs that it does not foresee are told in one message."""
        try:
            return self.rewrite(proto, path, model, config, context)
        except (DrupeError, MemoryError, OSError):
            raise
        except Exception as error:
            deepest: BaseException = error
            while deepest.__cause__ is not None:
                deepest = deepest.__cause__
            said = next(iter(str(deepest).strip().splitlines()), "")
            raise PassError(
                f"{self.spec.name} can't rewrite the graph {path.name}: {type(deepest).__name__}"
                + (f": {said[:300]}" if said else "")
                + "; leave the pass out for this model, or the operators that it fails on where its options name them"
            ) from error

    def _check_operators(self, proto: Any, model: Model, context: PassContext) -> None:
        """Raise PassError, before the work, for operators that ONNX Runtime lacks."""
        if self.replaces_operators or model.attributes.get("use_ort_extensions") or not _for_this_cpu(context):
            return
        if unknown := unknown_operators(proto):
            operator, node = unknown[0]
            more = f" (and {len(unknown) - 1} more nodes)" if len(unknown) > 1 else ""
            raise PassError(
                f"{self.spec.name}: node {node!r} has the operator {operator}, which ONNX Runtime does not have{more}; "
                "replace it, or set use_ort_extensions in the input model where a library brings it"
            )


def check_loads(name: str, path: Path, size: int, attributes: Mapping[str, Any], context: PassContext) -> None:
    """Raise PassError when ONNX Runtime can't load a graph, where it is for the CPU of this machine.

    size: in bytes; attributes: of the model that the graph belongs to.
    """
    if size > _LOADED or not _for_this_cpu(context):
        return
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    try:
        register_extensions(attributes, settings)
    except EvaluationError:
        # The library may be there where the model is run; this pass does without.
        return
    try:
        ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PassError(f"{name} made a graph that ONNX Runtime can't load: {error}") from error


def _for_this_cpu(context: PassContext) -> bool:
    accelerator = context.accelerator
    return accelerator.device == "cpu" and accelerator.execution_provider in (None, "CPUExecutionProvider")


def check_node_names(pass_name: str, proto: Any, field: str, names: Any) -> None:
    """Raise ConfigError with the nearest name for a node that the graph lacks."""
    known = {node.name for node in proto.graph.node}
    for name in names or ():
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{pass_name}: {field}: the graph has no node {name!r}{hint}")

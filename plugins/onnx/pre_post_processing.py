"""AppendPrePostProcessingOps: what is done before and after a model becomes part of its graph (onnxruntime-extensions).

The graph then takes an encoded picture, the bytes of an audio file or text, and may give a picture or text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig, PluginConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig
from drupe.plugins.onnx.processing_steps import TOOL, beside, build_step, check_steps, tool_functions

__all__ = ["AppendPrePostProcessingOps", "AppendPrePostProcessingOpsConfig"]

_OPSET = 18
"""The operator set with which pictures are resized as PIL does (antialiased)."""
_TYPES = {
    "float": 1, "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8,
    "bool": 9, "float16": 10, "double": 11, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
"""Name → number of onnx.TensorProto.DataType."""
_WHISPER = {"use_audio_decoder": True, "use_onnx_stft": True, "skip_special_tokens": True}
"""Arguments of the command `whisper` and what they are where not given."""


class ProcessingInput(PluginConfig):
    """An input that the graph has in front of `pre`."""

    name: str = Field(description="What the input is called.")
    data_type: str = Field(description="uint8, float, string, …")
    shape: list[int | str] = Field(description="A number, or a name where the length is open, for each axis.")

    @field_validator("data_type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in _TYPES:
            raise ValueError(f"unknown type {value!r}; expected one of {', '.join(_TYPES)}")
        return value


class AppendPrePostProcessingOpsConfig(GraphPassConfig):
    """A whole pipeline (tool_command), or steps (pre, post)."""

    tool_command: str | None = Field(
        None,
        description="whisper: audio in front, text behind a model with a beam search. Or a pipeline of "
        "onnxruntime-extensions' tool: superresolution, mobilenet, yolo_detection, transformers_and_bert.",
    )
    tool_command_args: dict[str, Any] | list[ProcessingInput] | None = Field(
        None,
        description="The pipeline's arguments by name; for steps, the inputs in front of them: name, data_type, shape.",
    )
    pre: list[dict[str, Any]] | None = Field(
        None, description='Steps in front of the model: {"Resize": {"resize_to": 256}}, …'
    )
    post: list[dict[str, Any]] | None = Field(None, description='Steps behind the model: {"Softmax": {}}, …')
    target_opset: int | None = Field(
        None, ge=16, le=24, description="Version of the ONNX operator set; not given: 18, or the graph's if newer."
    )

    @model_validator(mode="after")
    def _consistent(self) -> AppendPrePostProcessingOpsConfig:
        steps = [name for name in ("pre", "post") if getattr(self, name)]
        if self.tool_command is not None:
            if steps:
                raise ValueError(f"tool_command and {steps[0]}: give one of them")
            self._check_command(self.tool_command)
        elif not steps:
            raise ValueError("give tool_command, or steps in pre or post")
        else:
            if self.pre and not isinstance(self.tool_command_args, list):
                raise ValueError(
                    "pre needs the inputs in front of it as tool_command_args, a list: "
                    '[{"name": "image", "data_type": "uint8", "shape": ["num_bytes"]}]'
                )
            for name in steps:
                check_steps(name, getattr(self, name))
        return self

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The pipeline's arguments by name."""
        return self.tool_command_args if isinstance(self.tool_command_args, dict) else {}

    def _check_command(self, command: str) -> None:
        known = tool_functions()
        if command != "whisper" and known and command not in known:
            raise ValueError(
                f"tool_command: {command!r} is no pipeline of onnxruntime-extensions; expected one of whisper, "
                f"{', '.join(known)}"
            )
        given = self.tool_command_args or {}
        if not isinstance(given, Mapping):
            raise ValueError(f"tool_command_args is a list; {command} takes its arguments by name")
        if command != "whisper" and not known:
            return
        names = list(_WHISPER) if command == "whisper" else [n for n in known[command] if n != "onnx_opset"]
        for name in given:
            if name not in names:
                raise ValueError(f"tool_command_args: {command} takes no {name!r}; it takes {', '.join(names)}")
        if command == "whisper":
            if wrong := next((name for name, value in given.items() if not isinstance(value, bool)), None):
                raise ValueError(f"tool_command_args.{wrong}: {given[wrong]!r}; expected true or false")
            return
        absent = [n for n in names if known[command][n].required and n not in given]
        if absent:
            raise ValueError(f"tool_command_args: {command} lacks {', '.join(absent)}")


class AppendPrePostProcessingOps(GraphPass):
    """Puts steps of onnxruntime-extensions' own tool around a graph; whoever runs it registers that library."""

    Config: ClassVar[type[PassConfig]] = AppendPrePostProcessingOpsConfig
    version = 1

    def requirements(self, config: Any, accelerator: Accelerator) -> Sequence[str]:
        """Whisper's pipeline is exported with PyTorch from the model's processor."""
        return ("torch>=2.7", "transformers>=5.10") if config.tool_command == "whisper" else ()

    def outcome(self, attributes: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
        """The graph needs the library's operators."""
        return {"use_ort_extensions": True}

    def rewrite(
        self, proto: Any, path: Path, model: Model, config: AppendPrePostProcessingOpsConfig, context: PassContext
    ) -> Any:
        """Build what goes around the graph, and join it to the graph."""
        opset = _opset(self.spec.name, proto, config)
        work = context.output_dir.parent
        try:
            if config.tool_command == "whisper":
                from drupe.plugins.onnx.whisper_processing import around_whisper

                return around_whisper(self.spec.name, proto, model, opset, **{**_WHISPER, **config.arguments})
            if config.tool_command is not None:
                return _pipeline(config, proto, opset, model.folder, work)
            return _steps(config, proto, opset, model.folder)
        except (ConfigError, PassError):
            raise
        except Exception as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise PassError(
                f"{self.spec.name}: onnxruntime-extensions can't join its steps to the graph: {told}"
            ) from error


def _opset(name: str, proto: Any, config: AppendPrePostProcessingOpsConfig) -> int:
    """Return the operator set of the result. Raises ConfigError where the graph is of a newer one."""
    there = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if config.tool_command == "whisper":
        # Nothing in the pipeline depends on it, and a graph inside a node can't be converted.
        if config.target_opset not in (None, there):
            raise ConfigError(
                f"{name}: the graph is of operator set {there}; give target_opset: {there}, or leave it out"
            )
        return int(there)
    if config.target_opset is not None and there > config.target_opset:
        raise ConfigError(
            f"{name}: the graph is of operator set {there}, newer than target_opset {config.target_opset}; leave it "
            "out, or export for an older one"
        )
    return config.target_opset or max(_OPSET, int(there))


def _steps(config: AppendPrePostProcessingOpsConfig, proto: Any, opset: int, folder: Path) -> Any:
    from onnxruntime_extensions.tools.pre_post_processing import PrePostProcessor, create_named_value

    inputs = config.tool_command_args if isinstance(config.tool_command_args, list) else []
    processor = PrePostProcessor([create_named_value(i.name, _TYPES[i.data_type], i.shape) for i in inputs], opset)
    if config.pre:
        processor.add_pre_processing([build_step(step, proto.graph, folder) for step in config.pre])
    if config.post:
        processor.add_post_processing([build_step(step, proto.graph, folder) for step in config.post])
    return processor.run(proto)


def _pipeline(config: AppendPrePostProcessingOpsConfig, proto: Any, opset: int, folder: Path, work: Path) -> Any:
    import enum
    import importlib
    import inspect

    import onnx

    tool = importlib.import_module(TOOL)
    function = getattr(tool, str(config.tool_command))
    arguments: dict[str, Any] = {}
    for name, value in config.arguments.items():
        kind = inspect.signature(function).parameters[name].annotation
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and isinstance(value, str):
            choices = {entry.name.lower(): entry for entry in kind}
            if value.lower() not in choices:
                raise ConfigError(
                    f"tool_command_args.{name}: {value!r}; expected one of {', '.join(e.name for e in kind)}"
                )
            value = choices[value.lower()]
        arguments[name] = beside(name, value, folder)
    before, after = work / "before.onnx", work / "after.onnx"
    onnx.save(proto, str(before))
    function(before, after, **arguments, onnx_opset=opset)
    return onnx.load(str(after))

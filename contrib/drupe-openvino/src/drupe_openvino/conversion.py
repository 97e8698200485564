"""Converts Hugging Face and ONNX models to OpenVINO IR."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from drupe import Accelerator, ConfigError, FileRef, Model, ModelInfo, Pass, PassConfig, PassContext, user_function
from pydantic import Field, model_validator

from drupe_openvino.ir import WEIGHT_SUFFIXES, replaced, save_ir, single_file
from drupe_openvino.libraries import openvino

__all__ = ["OpenVINOConversion"]

Shape = list[int]


class ConversionConfig(PassConfig):
    """How the IR comes out."""

    input_shapes: list[Shape] | None = Field(None, description="Fixed input shapes in order; -1 leaves an axis open.")
    compress_to_fp16: bool = Field(False, description="Store float32 weights as float16.")
    output_model: str = Field("openvino_model", pattern=r"^[\w.-]+$", description="File name of the IR, less .xml.")
    user_script: FileRef | None = Field(None, description="A Python file of the user's; needs --allow user-scripts.")
    script_dir: FileRef | None = Field(None, description="A folder that the script imports from.")
    example_input_func: str | None = Field(
        None, description="Function of user_script that returns an example input; default: by the model's tokenizer."
    )
    extra_configs: dict[str, Any] | None = Field(None, description="Further arguments of openvino.convert_model.")

    @model_validator(mode="after")
    def _function_has_a_script(self) -> ConversionConfig:
        if self.example_input_func is not None and self.user_script is None:
            raise ValueError("example_input_func names a function of user_script, which is not given")
        return self


class OpenVINOConversion(Pass):
    """Trace the model and write OpenVINO IR.

    1. The weights keep their values; with compress_to_fp16 they lose the bits that float16 lacks.
    2. Axes of batch and sequence stay open unless input_shapes closes them.
    3. Tokenizer, configuration and all files that hold no weights stay beside the IR.
    """

    Config = ConversionConfig

    def plan(self, info: ModelInfo, config: ConversionConfig, accelerator: Accelerator) -> ModelInfo:
        """See Pass.plan. Raises ConfigError for a model with an adapter or with quantized weights."""
        planned = super().plan(info, config, accelerator)
        if info.attributes.get("adapter"):
            raise ConfigError(f"{self.spec.name} takes whole models; put MergeAdapterWeights before it")
        if info.kind == "hf" and info.attributes.get("quantization"):
            raise ConfigError(
                f"{self.spec.name} can't read {info.attributes['quantization']} weights; convert the float model and "
                "compress it with OpenVINOWeightCompression"
            )
        return planned

    def run(self, model: Model, config: ConversionConfig, context: PassContext) -> Model:
        """See Pass.run."""
        ov = openvino()
        options: dict[str, Any] = dict(config.extra_configs or {})
        if model.kind == "onnx":
            graph = ov.convert_model(model.folder / single_file(model, ".onnx"), **options)
        else:
            loaded = _torch_model(model, context)
            example = _user_example(config, context)
            if example is None:
                example = _example(model, loaded)
            with _single_threaded(context), _quiet():
                graph = ov.convert_model(loaded, example_input=example, **options)
        if config.input_shapes is not None:
            _reshape(graph, config.input_shapes)
        save_ir(graph, context.output_dir, config.output_model, fp16=config.compress_to_fp16)
        gone = [name for name in model.files if name.endswith(WEIGHT_SUFFIXES)]
        return replaced(model, context, gone)


def _torch_model(model: Model, context: PassContext) -> Any:
    import json

    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    architectures: Sequence[str] = config.get("architectures") or ("AutoModel",)
    remote = "auto_map" in config
    if remote:
        context.require_consent("remote-code", "the model's own code (auto_map in its config.json)")
    # The class that made the weights; a task that only wants features still finds them in its outputs.
    name = architectures[0] if hasattr(transformers, architectures[0]) else "AutoModel"
    loader = getattr(transformers, name)
    loaded = loader.from_pretrained(
        model.folder, dtype=torch.float32, local_files_only=True, trust_remote_code=remote, use_safetensors=True
    )
    return loaded.eval()


def _example(model: Model, loaded: Any) -> Any:
    """Return an example input: text through the model's tokenizer, else a picture of the size it was made for."""
    import torch

    accepted = set(inspect.signature(loaded.forward).parameters)
    if (model.folder / "tokenizer_config.json").is_file():
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
        encoded = tokenizer(["An example of text."], return_tensors="pt")
        return {name: value for name, value in encoded.items() if name in accepted}
    if "pixel_values" in accepted:
        config = loaded.config
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(1, getattr(config, "num_channels", 3), height, width)}
    raise ConfigError("the model has no tokenizer and takes no pixel_values; give an example_input_func")


def _user_example(config: ConversionConfig, context: PassContext) -> Any:
    if config.example_input_func is None or config.user_script is None:
        return None
    function = user_function(config.user_script, config.example_input_func, context, folder=config.script_dir)
    return function()


def _reshape(graph: Any, shapes: Sequence[Shape]) -> None:
    if len(shapes) != len(graph.inputs):
        names = ", ".join(item.get_any_name() for item in graph.inputs)
        raise ConfigError(f"input_shapes has {len(shapes)} shapes; the model has {len(graph.inputs)} inputs: {names}")
    graph.reshape({item.get_any_name(): shape for item, shape in zip(graph.inputs, shapes, strict=True)})


@contextlib.contextmanager
def _single_threaded(context: PassContext) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(context.resources.thread_count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep tracing's warnings about Python branches out of the log: the result is checked by what it computes."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

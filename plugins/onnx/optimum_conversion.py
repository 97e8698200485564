"""OptimumConversion: a Hugging Face model → ONNX graphs, by Optimum's exporter in an environment of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, DrupeError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.graphs import companions, external_files, scrub_graph

__all__ = ["OptimumConversion", "OptimumConversionConfig"]

_KEPT = ("task", "architecture", "model_type", "model_attributes")
_DECODERS = ("text-generation",)
_ENCODER_DECODERS = ("text2text-generation", "automatic-speech-recognition", "image-text-to-text")
_SYNONYMS = {"causal-lm": "text-generation", "default": "feature-extraction", "ner": "token-classification",
             "masked-lm": "fill-mask", "sentiment-analysis": "text-classification",
             "sequence-classification": "text-classification"}  # fmt: skip
_FIRST, _LATER, _MERGED = "decoder_model", "decoder_with_past_model", "decoder_model_merged"
_ARGUMENTS = (
    "task", "dtype", "optimize", "monolith", "no_post_process", "atol", "pad_token_id", "do_validation", "model_kwargs",
    "library_name", "no_dynamic_axes", "do_constant_folding", "slim", "batch_size", "sequence_length", "num_choices",
    "width", "height", "num_channels", "feature_size", "nb_max_frames", "audio_sequence_length", "legacy",
)  # fmt: skip
_ELSEWHERE = {
    "opset": "give target_opset",
    "fp16": "give fp16 beside extra_args",
    "device": "give device beside extra_args",
    "trust_remote_code": "it belongs to input_model.load_kwargs",
    "revision": "it belongs to the input model",
    "token": "it belongs to the input model",
    "subfolder": "it belongs to the input model's path",
    "cache_dir": "the input model is read from Drupe's own store",
    "framework": "it is PyTorch",
}
"""Arguments of the exporter that have their place in other parts of a workflow."""


class OptimumConversionConfig(PassConfig):
    """Options of optimum.exporters.onnx.main_export."""

    target_opset: int | None = Field(
        None,
        ge=9,
        le=20,
        description="Version of the ONNX operator set. Not given: what Optimum recommends, mostly 18.",
    )
    components: list[str] | None = Field(
        None,
        min_length=1,
        description="Which of the exported graphs are wanted: decoder_model, decoder_with_past_model, encoder_model, … "
        "Not given: all. One gives an ONNX model, several a composite.",
    )
    fp16: bool = Field(False, description="Export in half precision, which needs device: cuda.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where the model is exported.")
    extra_args: dict[str, Any] | None = Field(
        None,
        description="Further arguments of main_export: task, monolith, no_post_process, atol, do_validation, dtype, … "
        "legacy: a decoder as two graphs, without and with past (decoder_model, decoder_with_past_model), and the two "
        "merged (decoder_model_merged) unless no_post_process.",
    )

    @field_validator("extra_args")
    @classmethod
    def _known_arguments(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in values or ():
            if name in _ELSEWHERE:
                raise ValueError(f"{name}: {_ELSEWHERE[name]}")
            if name not in _ARGUMENTS:
                import difflib

                near = difflib.get_close_matches(name, _ARGUMENTS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(_ARGUMENTS))}"
                raise ValueError(f"main_export has no argument {name!r}{hint}")
        return values

    @model_validator(mode="after")
    def _half_on_a_gpu(self) -> OptimumConversionConfig:
        if self.fp16 and self.device == "cpu":
            raise ValueError("fp16: Optimum exports half precision on a GPU only; give device: cuda, or convert the "
                             "graph with OnnxFloatToFloat16")  # fmt: skip
        if self.fp16 and self.argument("dtype") not in (None, "fp16"):
            raise ValueError(f"fp16 and extra_args.dtype {self.argument('dtype')!r} contradict each other")
        return self

    def argument(self, name: str) -> Any:
        """Return one of extra_args, None where it is not given."""
        return (self.extra_args or {}).get(name)


class OptimumConversion(Pass):
    """Exports with Optimum (optimum-onnx), whose transformers is older than the one that other passes need: give the
    pass a `host` that is a PythonEnvironment with its requirements.

    A decoder is exported with past keys and values, as one graph: it takes past_key_values.N.key and .value, of length
    0 in a first step, and gives present.N.key and .value; extra_args.task: text-generation exports one without.
    """

    Config: ClassVar[type[PassConfig]] = OptimumConversionConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Say whether the result is one graph or several; refuse what Optimum can't read."""
        planned = super().plan(info, config, accelerator)
        if info.attributes.get("quantization"):
            raise ConfigError(
                f"{self.spec.name} exports float models; this one is quantized ({info.attributes['quantization']})"
            )
        if info.attributes.get("adapter"):
            raise ConfigError(f"{self.spec.name} knows no adapters; put MergeAdapterWeights before it")
        names = _components(info, config)
        return ModelInfo(planned.kind if len(names) == 1 else "composite", _attributes(info, config))

    def run(self, model: Model, config: OptimumConversionConfig, context: PassContext) -> Model:
        """Export, and take the wanted graphs."""
        folder = context.output_dir.parent / "optimum"
        context.progress(0, 1, "exporting")
        try:
            exported = self._export(model, config, folder)
        except DrupeError:
            raise
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise PassError(f"{self.spec.name}: Optimum failed: {lines[0].strip()}") from error
        wanted = config.components or sorted(exported)
        if absent := [name for name in wanted if name not in exported]:
            raise PassError(
                f"{self.spec.name}: components has {', '.join(absent)}; Optimum exported {', '.join(sorted(exported))}"
            )
        if not config.components and len(wanted) > 1 and len(_components(model.info, config)) == 1:
            raise PassError(
                f"{self.spec.name}: Optimum exported {', '.join(wanted)} of this architecture; "
                "name those that you want as components"
            )
        for name in wanted:
            _take(exported[name], context.output_dir)
        companions(model.folder, context.output_dir)
        context.report["exported"] = sorted(exported)
        context.progress(1, 1, "exported")
        files = {name: exported[name].name for name in wanted}
        attributes = _attributes(model.info, config)
        if len(wanted) == 1 and len(_components(model.info, config)) == 1:
            return Model.from_dir("onnx", context.output_dir, {**attributes, "onnx_file": files[wanted[0]]})
        components = [{"name": name, "file": file} for name, file in files.items()]
        return Model.from_dir("composite", context.output_dir, {**attributes, "components": components})

    def _export(self, model: Model, config: OptimumConversionConfig, folder: Path) -> dict[str, Path]:
        """Return the exported graphs by name."""
        from optimum.exporters.onnx import main_export

        from drupe.plugins.huggingface.earlier import earlier_folder

        source = earlier_folder(model.folder, folder / "model")
        given = {name: value for name, value in (config.extra_args or {}).items() if name not in ("task", "legacy")}
        if config.fp16:
            given["dtype"] = "fp16"
        fixed = {
            "opset": config.target_opset,
            "device": config.device,
            "local_files_only": True,
            "trust_remote_code": bool(model.attributes.get("remote_code", False)),
        }
        task = _task(model.info, config)
        if not _legacy(task, config):
            main_export(str(source), folder / "whole", task=_known_task(source, task), **given, **fixed)
            return {path.stem: path for path in sorted((folder / "whole").glob("*.onnx"))}
        return self._two_decoders(source, folder, task, given, fixed, config)

    def _two_decoders(
        self,
        source: Path,
        folder: Path,
        task: str,
        given: Mapping[str, Any],
        fixed: Mapping[str, Any],
        config: OptimumConversionConfig,
    ) -> dict[str, Path]:
        """Export a decoder twice, without past keys and values and with them, and merge the two where that is asked."""
        from optimum.exporters.onnx import main_export
        from optimum.exporters.tasks import TasksManager
        from transformers import AutoConfig

        found: dict[str, Path] = {}
        merge = not given.get("no_post_process")
        wanted = {*(config.components or (_FIRST, _LATER, *((_MERGED,) if merge else ())))}
        needed = {_FIRST, _LATER} if _MERGED in wanted else wanted
        settings = AutoConfig.from_pretrained(
            source, local_files_only=True, trust_remote_code=fixed["trust_remote_code"]
        )
        for name in (_FIRST, _LATER):
            if name not in needed:
                continue
            own: dict[str, Any] = {}
            if name == _FIRST:
                build = TasksManager.get_exporter_config_constructor(
                    "onnx", model_type=settings.model_type, task="text-generation", library_name="transformers"
                )
                dtype = given.get("dtype") or "fp32"
                own = {"model": build(settings, use_past=True, use_past_in_inputs=False, float_dtype=dtype)}
            main_export(str(source), folder / name, task=task, custom_onnx_configs=own, **given, **fixed)
            found[name] = _renamed(folder / name / "model.onnx", name)
        if _MERGED in wanted:
            import onnx

            from drupe.plugins.onnx.graphs import save_graph
            from drupe.plugins.onnx.merging import merged

            proto = merged(self.spec.name, onnx.load(str(found[_FIRST])), onnx.load(str(found[_LATER])))
            external = any(external_files(path) for path in found.values())
            found[_MERGED] = save_graph(proto, folder / _MERGED, f"{_MERGED}.onnx", external=external)
        return found


def _task(info: ModelInfo, config: OptimumConversionConfig) -> str:
    """Return the task as Optimum names it; of models that generate the one with past, unless the user says another."""
    asked = config.argument("task")
    if asked and asked != "auto":
        return str(asked)
    own = str(info.attributes.get("task") or "feature-extraction").removesuffix("-with-past")
    own = _SYNONYMS.get(own, own)
    generates = own in (*_DECODERS, *_ENCODER_DECODERS)
    return f"{own}-with-past" if generates and not config.argument("monolith") else own


def _known_task(source: Path, task: str) -> str:
    """Return the task without past where Optimum has none with past for the architecture."""
    from optimum.exporters.tasks import TasksManager

    from drupe.plugins.huggingface.loading import read_config

    kind = str(read_config(source).get("model_type"))
    try:
        known = TasksManager.get_supported_tasks_for_model_type(
            kind.replace("_", "-"), exporter="onnx", library_name="transformers"
        )
    except KeyError:
        return task
    plain = task.removesuffix("-with-past")
    return plain if task not in known and plain in known else task


def _legacy(task: str, config: OptimumConversionConfig) -> bool:
    """Whether a decoder is to be two graphs."""
    return bool(config.argument("legacy")) and task == "text-generation-with-past"


def _components(info: ModelInfo, config: OptimumConversionConfig) -> Sequence[str]:
    """Return the graphs that the result will have, as far as the task tells."""
    if config.components:
        return config.components
    task = _task(info, config)
    merge = () if config.argument("no_post_process") else (_MERGED,)
    if _legacy(task, config):
        return (_FIRST, _LATER, *merge)
    if task.removesuffix("-with-past") in _ENCODER_DECODERS and not config.argument("monolith"):
        return ("encoder_model", _FIRST, *((_LATER, *merge) if task.endswith("-with-past") else ()))
    return ("model",)


def _attributes(info: ModelInfo, config: OptimumConversionConfig) -> dict[str, Any]:
    kept = {key: value for key, value in info.attributes.items() if key in _KEPT}
    if (task := _task(info, config)).removesuffix("-with-past") in _DECODERS:
        kept["task"] = task
    return {
        **kept,
        **({"opset": config.target_opset} if config.target_opset else {}),
        **({"precision": "fp16"} if config.fp16 else {}),
    }


def _renamed(path: Path, name: str) -> Path:
    """Give a graph and the file with its weights another name."""
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    target = path.with_name(f"{name}.onnx")
    beside = external_files(path)
    if not beside:
        return path.rename(target)
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in _get_all_tensors(proto):
        if uses_external_data(tensor):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"{name}.onnx_data"
    if len(beside) > 1:
        raise PassError(f"the graph {path.name} has its weights in {len(beside)} files; expected one")
    beside[0].rename(path.with_name(f"{name}.onnx_data"))
    onnx.save(proto, str(target))
    path.unlink()
    return target


def _take(path: Path, target: Path) -> None:
    """Move a graph and its weights, without what tells where it was made."""
    import onnx

    beside = external_files(path)
    proto = onnx.load(str(path), load_external_data=False)
    scrub_graph(proto)
    (target / path.name).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, str(target / path.name))
    for file in beside:
        file.rename(target / file.name)

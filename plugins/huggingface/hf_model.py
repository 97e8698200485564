"""The model kind `hf`: Hugging Face models from a folder, the hub, a GGUF file or pickled weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from drupe.core.config import SecretRef
from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.sources import ModelConfig, ModelKind
from drupe.plugins.huggingface.components import ComponentConfig, check_components
from drupe.plugins.huggingface.config_facts import text_config
from drupe.plugins.huggingface.files import HEADER_TYPES, OTHER_FORMS, copy_file, copy_script, copy_tree, weight_types
from drupe.plugins.huggingface.gguf import dequantize_gguf, is_gguf
from drupe.plugins.huggingface.io_config import checked_io_config
from drupe.plugins.huggingface.loading import (
    auto_class,
    auto_class_name,
    infer_task,
    known_task,
    load_model,
    read_config,
)
from drupe.plugins.huggingface.mlflow import MlflowModel, read_mlflow
from drupe.plugins.huggingface.scrub import scrub_folder

__all__ = ["HfConfig", "HfKind"]

_RENAMED = {"torch_dtype": "dtype", "_attn_implementation": "attn_implementation", "use_auth_token": "token"}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What other frameworks, trainers and converters leave beside a model.
_FOREIGN = ("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.onnx.data", "*.gguf", "*.ot", "*.tflite", "*.mlmodel")
_NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "scaler.*", "trainer_state.json")


_SCHEME = ("bits", "group_size", "sym", "desc_act", "checkpoint_format")
"""What readers of a quantized checkpoint may read wrongly, and so passes look at before work."""


_SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


class HfConfig(ModelConfig):
    """An `input_model` of type HfModel."""

    model_path: str | dict[str, Any] = Field(
        description="A folder, a GGUF file, owner/name on the hub, or a URL (pypi://NAME/VERSION/PATH, s3://…)."
    )
    task: Annotated[str | None, AfterValidator(known_task)] = Field(
        None, description="What the model is for; by default, its architecture tells."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    token: SecretRef | None = Field(None, description="The environment variable with the hub's token (HF_TOKEN).")
    adapter_path: str | dict[str, Any] | None = Field(None, description="A LoRA adapter to put on the model.")
    load_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of from_pretrained: dtype, attn_implementation, trust_remote_code (a consent), …",
    )
    dtype: str = Field("float32", description="What a GGUF file's weights are expanded to.")
    io_config: Annotated[dict[str, Any] | str | None, AfterValidator(checked_io_config)] = Field(
        None, description="Names, shapes, types and axes for export."
    )
    dummy_inputs_func: str | None = Field(None, description="A function of model_script that makes example inputs.")
    model_script: str | None = Field(None, description="A Python file of the user's (a consent).")
    script_dir: str | None = Field(None, description="The folder with what model_script imports.")
    components: list[ComponentConfig] = Field(
        default_factory=list, description="Parts that functions of model_script build, each exported by itself."
    )
    model_attributes: dict[str, Any] = Field(default_factory=dict, description="Facts for passes to use.")
    test_model_config: dict[str, Any] | None = Field(
        None, description="Changes to config.json; the model gets random weights in that shape, for tries."
    )

    @field_validator("load_kwargs")
    @classmethod
    def _plain_load_kwargs(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {**values, **values.get("extra_args", {})}
        values.pop("extra_args", None)
        values = {_RENAMED.get(key, key): value for key, value in values.items()}
        if isinstance(values.get("token"), str):
            raise ValueError("token: a secret does not belong here; name its environment variable as `token` instead")
        method = values.pop("quantization_method", None)
        if method is not None:
            values["quantization_config"] = {"quant_method": method, **values.get("quantization_config", {})}
        return values

    @model_validator(mode="before")
    @classmethod
    def _no_empty_load_kwargs(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {k: v for k, v in data.items() if not (v is None and k in ("load_kwargs", "model_attributes"))}
        return data

    @model_validator(mode="after")
    def _parts(self) -> HfConfig:
        check_components(self.components, self.model_script)
        return self

    @property
    def remote_code(self) -> bool:
        """Whether the file asks for the model's own code to be run."""
        return bool(self.load_kwargs.get("trust_remote_code"))


class HfKind(ModelKind):
    """Reads HfModel. The Model holds safetensors, config and tokenizer at its root and an adapter in `adapter/`."""

    Config: ClassVar[type[ModelConfig]] = HfConfig
    version = 2

    def references(self, config: HfConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references."""
        found: dict[str, str | Mapping[str, Any]] = {"model": config.model_path}
        if config.adapter_path is not None:
            found["adapter"] = config.adapter_path
        if config.model_script is not None:
            found["script"] = {"type": "local_file", "path": config.model_script}
        if config.script_dir is not None:
            found["script_dir"] = {"type": "local_folder", "path": config.script_dir}
        return found

    def source_options(self, config: HfConfig) -> Mapping[str, Any]:
        """See ModelKind.source_options."""
        return {
            "revision": config.revision or config.load_kwargs.get("revision"),
            "token": config.token,
            "remote_code": config.remote_code,
            "pickle": True,
        }

    def consents(self, config: HfConfig) -> Sequence[str]:
        """See ModelKind.consents. Pickled weights are found out when the files are there."""
        wanted = ["remote-code"] if config.remote_code else []
        return [*wanted, "user-scripts"] if config.model_script else wanted

    def info(self, config: HfConfig, workflow_dir: Path) -> ModelInfo:
        """See ModelKind.info: from a local folder's config.json; of other references only what the config says."""
        known = self._attributes(config)
        if isinstance(config.model_path, str) and "://" not in config.model_path:
            folder = workflow_dir / Path(config.model_path).expanduser()
            mlflow = _mlflow(folder)
            known |= _facts(mlflow.parts[-1] if mlflow else folder, _with_task(folder, config))
            known |= _sizes(read_config(mlflow.parts[-1] if mlflow else folder))
            if config.model_path.endswith(".gguf"):
                known["dtype"] = config.dtype
        return ModelInfo("hf", known)

    def load(self, config: HfConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.load."""
        if config.remote_code:
            context.require_consent("remote-code", "load_kwargs.trust_remote_code")
        if config.model_script:
            context.require_consent("user-scripts", f"model_script {config.model_script}")
        out = context.output_dir
        source = fetched["model"]
        if is_gguf(source):
            context.progress(0, 1, f"expanding {source.name} to {config.dtype}")
            dequantize_gguf(source, out, dtype=config.dtype)
        elif source.is_dir():
            config = _with_task(source, config)
            self._take_folder(_whole(source, context), out, config, context)
        else:
            raise ConfigError(f"{source} is neither a Hugging Face folder nor a GGUF file")
        if "adapter" in fetched:
            _take_adapter(fetched["adapter"], out / "adapter", context)
        if "script" in fetched:
            copy_script(fetched["script"], out / "script")
        if "script_dir" in fetched:
            copy_tree(fetched["script_dir"], out / "script", context, lambda path: "__pycache__" not in path.parts)
        if config.test_model_config is not None:
            _randomize(out, config, context)
        scrub_folder(out)
        return Model.from_dir("hf", out, {**self._attributes(config), **_facts(out, config)})

    def rehearse(self, config: HfConfig, fetched: Mapping[str, Path], context: JobContext) -> Model:
        """See ModelKind.rehearse: two layers of the model's own widths, with random weights and its tokenizer."""
        source = fetched["model"]
        shape = read_config(_whole(source, context)) if source.is_dir() else {}
        small: dict[str, Any] = {} if shape else {"num_hidden_layers": 2}
        for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"):
            if shape.get(name):
                small[name] = min(2, int(shape[name]))
        if isinstance(shape.get("layer_types"), list):
            small["layer_types"] = shape["layer_types"][:2]
        changed = {**small, **(config.test_model_config or {})}
        return self.load(config.model_copy(update={"test_model_config": changed}), fetched, context)

    def _attributes(self, config: HfConfig) -> dict[str, Any]:
        fetching = ("trust_remote_code", "revision", "token", "cache_dir", "force_download", "local_files_only")
        loading = {key: value for key, value in config.load_kwargs.items() if key not in fetching}
        known: dict[str, Any] = {
            "task": config.task,
            "adapter": "adapter" if config.adapter_path is not None else None,
            "remote_code": config.remote_code or None,
            "load_kwargs": loading or None,
            "io_config": config.io_config,
            "dummy_inputs_func": config.dummy_inputs_func,
            "model_script": f"script/{Path(config.model_script).name}" if config.model_script else None,
            "components": [part.model_dump(exclude_none=True) for part in config.components] or None,
            "model_attributes": config.model_attributes or None,
        }
        return {key: value for key, value in known.items() if value is not None}

    def _take_folder(self, source: Path, out: Path, config: HfConfig, context: JobContext) -> None:
        if not (source / "config.json").is_file():
            hint = ""
            if (source / "adapter_config.json").is_file():
                hint = "; it is an adapter: name it as adapter_path, and its base model as model_path"
            elif (source / "genai_config.json").is_file():
                hint = "; it is an ONNX Runtime GenAI model: use type GenAIModel"
            raise ConfigError(f"{source} has no config.json{hint}")
        if "slicing" in read_config(source):
            raise ConfigError(f"{source} was made by SliceGPT: use type SlicedModel")
        names = [path.name for path in source.iterdir()]
        safe = any(name.endswith(".safetensors") for name in names)
        pickled = [n for n in names if _matches(n, _PICKLED) and not _matches(n, _NO_WEIGHTS)]
        if not safe and not pickled and config.test_model_config is None:
            raise ConfigError(f"{source} has no weights (*.safetensors); it holds: {', '.join(sorted(names)[:12])}")
        _check_own_code(source, config)

        def wanted(path: Path) -> bool:
            name = path.name
            if len(path.parts) > 1 and (path.parts[0].startswith("checkpoint-") or path.parts[0] in OTHER_FORMS):
                return False
            if name.endswith(".py"):
                return config.remote_code
            return not _matches(name, (*_FOREIGN, *_NO_WEIGHTS, *_PICKLED, "*.index.json.lock"))

        copy_tree(source, out, context, wanted)
        if not safe and pickled:
            context.require_consent("pickle", f"reading the pickled weights {', '.join(sorted(pickled)[:3])}")
            _unpickle(source, out, config, context)


def _mlflow(folder: Path) -> MlflowModel | None:
    """Return the MLflow model in a folder, or None, also where it can't be read: the import tells."""
    try:
        return read_mlflow(folder)
    except ConfigError:
        return None


def _whole(source: Path, context: JobContext) -> Path:
    """Return the Hugging Face folder: the source itself, or what its MLmodel names."""
    mlflow = read_mlflow(source)
    return mlflow.whole(context.checkpoint_dir / "mlflow") if mlflow is not None else source


def _with_task(source: Path, config: HfConfig) -> HfConfig:
    """Return the config with the task that an MLmodel tells, where the workflow says none."""
    mlflow = _mlflow(source)
    if config.task is not None or mlflow is None or mlflow.task is None:
        return config
    try:
        auto_class_name(mlflow.task)
    except ConfigError:
        return config
    return config.model_copy(update={"task": mlflow.task})


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _facts(folder: Path, config: HfConfig) -> dict[str, Any]:
    """Return what config.json tells: task, dtype, architecture, model_type, quantization."""
    data = read_config(folder)
    if not data:
        return {}
    architecture = (data.get("architectures") or [None])[0]
    quantization = data.get("quantization_config") or config.load_kwargs.get("quantization_config") or {}
    dtype = data.get("dtype") or data.get("torch_dtype") or _stored_dtype(folder)
    found: dict[str, Any] = {
        "task": config.task or infer_task(architecture),
        "dtype": str(dtype).removeprefix("torch.") if dtype else None,
        "architecture": architecture,
        "model_type": data.get("model_type"),
        "quantization": quantization.get("quant_method"),
        "quantization_scheme": {key: quantization[key] for key in _SCHEME if key in quantization} or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _sizes(data: dict[str, Any]) -> dict[str, Any]:
    """Return what passes that cut layers ask of a decoder before work; the model that is loaded has its config.json."""
    told = text_config(data)
    found = {name: told[name] for name in _SIZES if isinstance(told.get(name), int)}
    return {"sizes": found} if found else {}


def _stored_dtype(folder: Path) -> str | None:
    """Return the dtype of the first floating tensor in the headers of a folder's weights."""
    return next((HEADER_TYPES[kind] for _, kind in weight_types(folder) if kind in HEADER_TYPES), None)


def _check_own_code(source: Path, config: HfConfig) -> None:
    """Raise ConfigError when the model can't be loaded without its own code, which the file does not ask for."""
    data = read_config(source)
    if not data.get("auto_map") or config.remote_code:
        return
    from transformers import CONFIG_MAPPING

    if data.get("model_type") not in CONFIG_MAPPING:
        raise ConfigError(
            f"the model {source.name} brings code of its own ({', '.join(sorted(data['auto_map'].values()))}), which "
            "transformers does not know; if you trust it, set load_kwargs.trust_remote_code: true and add "
            "--allow remote-code to the command"
        )


def _take_adapter(source: Path, into: Path, context: JobContext) -> None:
    if not (source / "adapter_config.json").is_file():
        raise ConfigError(f"adapter_path {source} has no adapter_config.json")
    copy_file(source / "adapter_config.json", into / "adapter_config.json")
    if (source / "adapter_model.safetensors").is_file():
        copy_file(source / "adapter_model.safetensors", into / "adapter_model.safetensors")
    elif (source / "adapter_model.bin").is_file():
        context.require_consent("pickle", f"reading the pickled adapter {source / 'adapter_model.bin'}")
        import torch
        from safetensors.torch import save_file

        weights = torch.load(source / "adapter_model.bin", map_location="cpu", weights_only=True)
        save_file({k: v.contiguous() for k, v in weights.items()}, into / "adapter_model.safetensors", {"format": "pt"})
    else:
        raise ConfigError(f"adapter_path {source} has no adapter_model.safetensors")


def _unpickle(source: Path, out: Path, config: HfConfig, context: JobContext) -> None:
    """Read pickled weights (tensors only) and write them as safetensors."""
    context.progress(0, 1, "converting pickled weights")
    attributes = {"remote_code": config.remote_code, "task": config.task}
    stored = Model("hf", {}, {k: v for k, v in attributes.items() if v}, path=source)
    load_model(stored, use_safetensors=False).save_pretrained(out)


def _randomize(out: Path, config: HfConfig, context: JobContext) -> None:
    """Replace the weights by random ones of the shape that config.json, as changed by test_model_config, asks for."""
    import torch
    import transformers

    shape = transformers.AutoConfig.from_pretrained(
        out, trust_remote_code=config.remote_code, local_files_only=True, **(config.test_model_config or {})
    )
    auto = auto_class(config.task, (shape.architectures or [None])[0])
    for path in (*out.glob("*.safetensors"), *out.glob("*.safetensors.index.json")):
        path.unlink()
    torch.manual_seed(context.seed)
    auto.from_config(shape, trust_remote_code=config.remote_code).save_pretrained(out)

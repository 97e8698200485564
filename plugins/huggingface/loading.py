"""Loads Hugging Face models: the one way in which passes, runtimes and data open an `hf` model.

An `hf` model's folder holds the base model at its root and, where attributes["adapter"] names one, an adapter in that
sub-folder. Everything is read from the folder; nothing is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.model import Model

__all__ = [
    "adapter_folder",
    "auto_class",
    "auto_class_name",
    "infer_task",
    "known_task",
    "load_config",
    "load_image_processor",
    "load_model",
    "load_tokenizer",
    "model_class",
    "read_config",
    "ready_device",
    "torch_dtype",
]

_AUTO_CLASSES: Mapping[str, str] = {
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "text-classification": "AutoModelForSequenceClassification",
    "zero-shot-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "fill-mask": "AutoModelForMaskedLM",
    "feature-extraction": "AutoModel",
    "sentence-similarity": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
    "object-detection": "AutoModelForObjectDetection",
    "image-segmentation": "AutoModelForImageSegmentation",
    "depth-estimation": "AutoModelForDepthEstimation",
    "audio-classification": "AutoModelForAudioClassification",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "image-text-to-text": "AutoModelForImageTextToText",
}
_BY_ARCHITECTURE: Mapping[str, Mapping[str, str]] = {
    "automatic-speech-recognition": {"ForCTC": "AutoModelForCTC"},
    "image-segmentation": {
        "ForSemanticSegmentation": "AutoModelForSemanticSegmentation",
        "ForInstanceSegmentation": "AutoModelForInstanceSegmentation",
        "ForUniversalSegmentation": "AutoModelForUniversalSegmentation",
    },
}
"""Tasks that have several Auto classes: the end of an architecture's class name → which."""
_TASK_ALIASES: Mapping[str, str] = {
    "causal-lm": "text-generation",
    "text-generation-with-past": "text-generation",
    "sentiment-analysis": "text-classification",
    "sequence-classification": "text-classification",
    "ner": "token-classification",
    "masked-lm": "fill-mask",
    "default": "feature-extraction",
}
# The class name of an architecture tells the task where the workflow doesn't: the first pattern that fits.
_TASKS_BY_ARCHITECTURE = (
    (r"ForCausalLM$|LMHeadModel$", "text-generation"),
    (r"^(Wav2Vec2|Hubert|WavLM|UniSpeech|Data2VecAudio|SEW).*ForSequenceClassification$", "audio-classification"),
    (r"ForAudioClassification$", "audio-classification"),
    (r"ForSequenceClassification$", "text-classification"),
    (r"ForTokenClassification$", "token-classification"),
    (r"ForQuestionAnswering$", "question-answering"),
    (r"ForMultipleChoice$", "multiple-choice"),
    (r"ForMaskedLM$", "fill-mask"),
    (r"ForImageClassification(WithTeacher)?$", "image-classification"),
    (r"ForObjectDetection$", "object-detection"),
    (r"For(Semantic|Instance|Universal|Image)?Segmentation$", "image-segmentation"),
    (r"ForDepthEstimation$", "depth-estimation"),
    (r"ForSpeechSeq2Seq$|ForCTC$", "automatic-speech-recognition"),
    (r"^(Whisper|Speech2Text|Moonshine)ForConditionalGeneration$", "automatic-speech-recognition"),
    (
        r"(T5|Bart|Pegasus|PegasusX|LED|M2M100|Blenderbot|BlenderbotSmall|FSMT|ProphetNet|SwitchTransformers)"
        r"ForConditionalGeneration$|^MarianMTModel$",
        "text2text-generation",
    ),
)


def infer_task(architecture: str | None) -> str:
    """Return the task of an architecture such as "LlamaForCausalLM"; "feature-extraction" where the name tells none."""
    for pattern, task in _TASKS_BY_ARCHITECTURE:
        if architecture and re.search(pattern, architecture):
            return task
    return "feature-extraction"


def auto_class_name(task: str, architecture: str | None = None) -> str:
    """Return the transformers Auto class that loads models for a task. Raises ConfigError for an unknown task.

    architecture: the model's class name, which decides where a task has several.
    """
    task = _TASK_ALIASES.get(task, task)
    if task not in _AUTO_CLASSES:
        raise ConfigError(f"unknown task {task!r}; known: {', '.join(sorted({*_AUTO_CLASSES, *_TASK_ALIASES}))}")
    own = _BY_ARCHITECTURE.get(task, {})
    return next((auto for end, auto in own.items() if architecture and architecture.endswith(end)), _AUTO_CLASSES[task])


def auto_class(task: str | None, architecture: str | None) -> Any:
    """Return the transformers Auto class that loads a model; where no task is told, its architecture tells it."""
    import transformers

    return getattr(transformers, auto_class_name(task or infer_task(architecture), architecture))


def known_task(task: str | None) -> str | None:
    """Return a Config's task as it is. Raises ValueError for one that no Auto class is known for."""
    if task is not None:
        try:
            auto_class_name(task)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    return task


def ready_device(accelerator: Accelerator, threads: int | None) -> str:
    """Return an accelerator's torch device, with this process's threads set. Raises EvaluationError without it."""
    import torch

    if threads:
        torch.set_num_threads(int(threads))
    if accelerator.device != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise EvaluationError("the accelerator is a gpu, but PyTorch sees none here; install a CUDA build of torch")
    return "cuda"


def torch_dtype(name: str | None) -> Any:
    """Return a torch dtype by name ("float32", "fp16", "torch.bfloat16", …); "auto" and None stay as they are."""
    import torch

    if name is None or name == "auto":
        return name
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16", "float": "float32"}
    plain = name.removeprefix("torch.")
    dtype = getattr(torch, short.get(plain, plain), None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"unknown dtype {name!r}; expected float32, float16, bfloat16 or auto")
    return dtype


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a model folder as data; {} where there is none. Light: needs no library."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    return data if isinstance(data, dict) else {}


def adapter_folder(model: Model) -> Path | None:
    """Return the folder of the model's adapter, or None."""
    name = model.attributes.get("adapter")
    return model.folder / str(name) if name else None


def model_class(model: Model) -> Any:
    """Return the transformers Auto class that loads a model for its task."""
    architecture = (read_config(model.folder).get("architectures") or [None])[0]
    return auto_class(model.attributes.get("task"), architecture)


def load_config(model: Model) -> Any:
    """Return the model's transformers config."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.folder, **_common(model))


def load_tokenizer(model: Model, **kwargs: Any) -> Any:
    """Return the model's tokenizer. One without a padding token pads with its end-of-text token.

    Raises ConfigError when the model has none.
    """
    from transformers import AutoTokenizer

    _quiet()
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
    if not any((model.folder / name).is_file() for name in names):
        raise ConfigError(
            f"the {model.kind} model has no tokenizer files ({', '.join(names[:3])}, …); "
            "add them to the model's folder, or use data that is tokenized already"
        )
    tokenizer = AutoTokenizer.from_pretrained(model.folder, **_common(model), **kwargs)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_image_processor(model: Model) -> Any | None:
    """Return the model's image processor, or None where it brings none."""
    if not any((model.folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return None
    from transformers import AutoImageProcessor

    _quiet()
    return AutoImageProcessor.from_pretrained(model.folder, **_common(model))


def load_model(
    model: Model,
    *,
    dtype: Any = None,
    device: str = "cpu",
    with_adapter: bool = True,
    trainable: bool = False,
    **kwargs: Any,
) -> Any:
    """Load an `hf` or `sliced` model with transformers, in evaluation mode unless `trainable`.

    dtype: a torch dtype or its name; None means as the input model's load_kwargs say, or else as stored. device: "cpu",
    "cuda", "cuda:1", … with_adapter: put the adapter on (a PeftModel, not merged). trainable: the adapter's weights
    (without an adapter: all weights) take gradients. kwargs go to from_pretrained (attn_implementation,
    quantization_config, …) and win over the input model's load_kwargs.
    """
    import transformers

    _quiet()
    stored: dict[str, Any] = dict(model.attributes.get("load_kwargs", {}))
    wanted = dtype if dtype is not None else stored.pop("dtype", None) or "auto"
    stored.pop("dtype", None)
    options = {**stored, **kwargs, **_common(model)}
    options["dtype"] = torch_dtype(wanted) if isinstance(wanted, str) else wanted
    if "quantization_config" in options or model.attributes.get("quantization") not in (None, "olive", "qat"):
        # Quantized weights are laid out for their device while loading; .to() would refuse them afterwards.
        options.setdefault("device_map", {"": device})
    config = read_config(model.folder)
    if _packs_zero_points(config):
        # transformers 5.18 and newer give zero points that are packed another shape than they have in the file.
        options.setdefault("quantization_config", transformers.CompressedTensorsConfig(dequantize=True))
    auto = model_class(model)
    if model.kind == "sliced":
        loaded = _sliced(model, options)
    elif model.attributes.get("quantization") == "olive":
        # transformers does not know the format; its layers are unpacked to the float weights that they stand for.
        loaded = _unpacked(auto, model, options)
    else:
        loaded = auto.from_pretrained(model.folder, **options)
    if model.attributes.get("quantization") == "qat":
        from drupe.plugins.quantization.qat.saving import FOLDER, restore

        loaded = restore(loaded.float(), model.folder / FOLDER)
    if with_adapter and (folder := adapter_folder(model)) is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, folder, is_trainable=trainable, local_files_only=True)
    if "device_map" not in options:
        loaded.to(device)
    loaded.train(trainable)
    return loaded


def _packs_zero_points(config: Mapping[str, Any]) -> bool:
    """Whether a config.json tells of compressed-tensors that round weights alone, with zero points, and pack them."""
    told = config.get("quantization_config")
    if not isinstance(told, Mapping) or told.get("quant_method") != "compressed-tensors":
        return False
    groups = [group for group in (told.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    weights = [group.get("weights") or {} for group in groups]
    return (
        told.get("format") == "pack-quantized"
        and any(entry.get("symmetric") is False for entry in weights)
        and not any(group.get("input_activations") for group in groups)
    )


def _unpacked(auto: Any, model: Model, options: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    from drupe.plugins.quantization.checkpoint import float_state

    config = AutoConfig.from_pretrained(model.folder, **_common(model))
    del config.quantization_config
    dtype = options.get("dtype")
    state = float_state(model.folder)
    stored = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    loaded = auto.from_config(
        config,
        dtype=stored if dtype in (None, "auto") else dtype,
        trust_remote_code=options["trust_remote_code"],
        **{key: value for key, value in options.items() if key == "attn_implementation"},
    )
    found = loaded.load_state_dict(state, strict=False)
    # A head that shares the embedding's table is not stored.
    shared = set(loaded._tied_weights_keys or ()) if getattr(config, "tie_word_embeddings", False) else set()
    lacking = [name for name in found.missing_keys if name not in shared]
    if lacking or found.unexpected_keys:
        what = f"lacks {lacking[0]}" if lacking else f"has {found.unexpected_keys[0]}"
        raise ConfigError(f"the quantized checkpoint {what}, so it is of another model than {type(loaded).__name__}")
    loaded.tie_weights()
    return loaded


def _sliced(model: Model, options: Mapping[str, Any]) -> Any:
    from drupe.plugins.quantization.slicing.sliced_decoder import load

    dtype = options.get("dtype")
    try:
        loaded = load(
            model.folder,
            dtype=None if dtype == "auto" else dtype,
            attn_implementation=options.get("attn_implementation"),
            trust_remote_code=options["trust_remote_code"],
        )
    except ValueError as error:
        raise ConfigError(f"the sliced model can't be loaded: {error}") from error
    if (packing := options.get("quantization_config")) is not None:
        from drupe.plugins.huggingface.four_bits import pack

        pack(loaded, packing)
        # The weights are rounded on the way to their device, the CPU too.
        loaded.to(options["device_map"][""])
    return loaded


def _common(model: Model) -> dict[str, Any]:
    # Consent to remote code was asked for when the model was imported; the attribute says that it was given.
    return {"local_files_only": True, "trust_remote_code": bool(model.attributes.get("remote_code", False))}


def _quiet() -> None:
    import logging as standard

    # transformers imports torchao where it is installed, which tells each time which GPU kernels are of no use here.
    for name in ("torchao", "torch.utils._pytree"):
        standard.getLogger(name).setLevel(standard.ERROR)
    from transformers.utils import logging

    logging.disable_progress_bar()

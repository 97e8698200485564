"""Turns a GGUF file into a Hugging Face folder: float32 safetensors, config and tokenizer."""

from __future__ import annotations

from pathlib import Path

from drupe.core.errors import ConfigError
from drupe.plugins.huggingface.loading import torch_dtype
from drupe.plugins.huggingface.scrub import scrub_folder

__all__ = ["dequantize_gguf", "is_gguf"]


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its first four bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(4) == b"GGUF"


def dequantize_gguf(source: Path, into: Path, *, dtype: str = "float32") -> None:
    """Write the model in `source` as a Hugging Face folder at `into`; the same file gives the same bytes.

    The quantized weights are expanded to `dtype`: values stay what the file holds, the size grows. Raises ConfigError
    for an architecture that transformers can't read from GGUF.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = {"gguf_file": source.name, "local_files_only": True}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **place)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise ConfigError(f"{source.name} can't be read as a GGUF model: {error}") from error
    config = loaded.config
    # The loaded model counts as quantized and refuses to be saved; a fresh one of the same shape takes its weights.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.to(torch_dtype(dtype))
    plain.config.dtype = torch_dtype(dtype)
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(into)
    tokenizer.save_pretrained(into)
    scrub_folder(into)

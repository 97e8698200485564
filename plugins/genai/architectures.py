"""What the installed model builder makes of an architecture: which it builds, and what it has to be told otherwise."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.introspect import module_source

__all__ = ["WRONG", "buildable", "read_config", "readable_source", "slides_unsaid"]

WRONG = {"OlmoForCausalLM": "takes OLMo's norms, which centre, for RMS norms"}
"""Architectures that the builder builds wrongly (seen with onnxruntime-genai 0.18), and how."""

_WHOLLY_SLIDING = frozenset({"MistralForCausalLM", "Phi3ForCausalLM"})
"""Architectures all of whose layers look no further back than config.sliding_window, where it is set."""
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers of Phi-3 that are several in one, and which; each has its rows behind the others'."""


def buildable() -> frozenset[str]:
    """Return the architectures that the installed builder compares with; empty where it can't be read."""
    try:
        tree = ast.parse(module_source("onnxruntime_genai.models.builder").read_bytes())
    except LookupError:
        return frozenset()
    return frozenset(
        str(value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "config.architectures[0]"
        for value in node.comparators
        if isinstance(value, ast.Constant)
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a model's config.json says; nothing where there is none."""
    path = folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def readable_source(folder: Path, scratch: Path) -> Path:
    """Return a folder that the builder reads rightly: the model's own, or one of links below `scratch`.

    The builder (onnxruntime-genai 0.18) takes layers of which nothing is said for full attention, and gives other
    logits than the model from the window's length on: config.json says then which slide. It cuts the zero points of
    fused layers in the format of Gptq and Rtn at the wrong places: such layers are written apart. It asks for the kind
    of Phi's long rotary embeddings by the name that config.json had before transformers 5: it has both then. It looks
    for Gemma-3's frequencies where transformers had them before its version 5: they are told there as well.
    """
    config = read_config(folder)
    slides, fused, unnamed, turns = (
        slides_unsaid(config),
        _is_fused(config),
        _names_rope_anew(config),
        _frequencies(config),
    )
    if not (slides or fused or unnamed or turns is not None):
        return folder
    scratch.mkdir(parents=True)
    for entry in folder.iterdir():
        if entry.name != "config.json" and not (fused and entry.suffix == ".safetensors"):
            (scratch / entry.name).symlink_to(entry.resolve())
    if slides:
        config["layer_types"] = ["sliding_attention"] * int(config["num_hidden_layers"])
    if unnamed:
        config["rope_parameters"]["type"] = config["rope_parameters"]["rope_type"]
    if turns is not None:
        config["rope_parameters"] = turns
    if fused:
        _write_apart(folder, scratch, _rows(config))
        told = config["quantization_config"].get("overrides") or {}
        config["quantization_config"]["overrides"] = {part: own for name, own in told.items() for part in _apart(name)}
    (scratch / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return scratch


def slides_unsaid(config: Mapping[str, Any]) -> bool:
    """Return whether all layers of this config.json look no further back than a window that it does not give them."""
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings")
    wholly = (config.get("architectures") or [None])[0] in _WHOLLY_SLIDING and not config.get("layer_types")
    limited = isinstance(window, int) and window > 0 and not (isinstance(longest, int) and longest <= window)
    return wholly and limited


def _names_rope_anew(config: Mapping[str, Any]) -> bool:
    told = config.get("rope_parameters")
    return isinstance(told, Mapping) and told.get("rope_type") == "longrope" and "type" not in told


def _frequencies(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return Gemma-3's rotary parameters as the builder reads them beside transformers; None where they are of
    another architecture, or scaled: the builder would scale those of sliding layers too."""
    told = config.get("rope_parameters") or {}
    if (config.get("architectures") or [None])[0] != "Gemma3ForCausalLM" or config.get("rope_scaling"):
        return None
    parts = {
        name: {"rope_type": "default", **(told.get(name) or {})} for name in ("full_attention", "sliding_attention")
    }
    if any(part["rope_type"] != "default" for part in parts.values()):
        return None
    whole = float(parts["full_attention"].get("rope_theta") or config.get("rope_theta") or 1e6)
    sliding = float(parts["sliding_attention"].get("rope_theta") or config.get("rope_local_base_freq") or 1e4)
    parts["full_attention"]["rope_theta"], parts["sliding_attention"]["rope_theta"] = whole, sliding
    return {**parts, "rope_type": "default", "rope_theta": whole, "rope_local_base_freq": sliding}


def _is_fused(config: Mapping[str, Any]) -> bool:
    told = config.get("quantization_config") or {}
    return (config.get("architectures") or [None])[0] == "Phi3ForCausalLM" and told.get("quant_method") == "olive"


def _rows(config: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows each part of a fused layer has."""
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // heads)
    groups = int(config.get("num_key_value_heads") or heads)
    wide = int(config["intermediate_size"])
    return {
        "q_proj": heads * size, "k_proj": groups * size, "v_proj": groups * size, "gate_proj": wide, "up_proj": wide
    }  # fmt: skip


def _write_apart(folder: Path, scratch: Path, rows: Mapping[str, int]) -> None:
    """Write the checkpoint with fused layers apart, by their rows."""
    from safetensors.torch import load_file, save_file

    for path in folder.glob("*.safetensors"):
        written: dict[str, Any] = {}
        for name, tensor in load_file(path).items():
            names = _apart(name)
            sizes = [rows[part] for part in rows if any(f".{part}." in own for own in names)] if len(names) > 1 else []
            parts = tensor.split(sizes) if sizes else (tensor,)
            written |= {own: part.contiguous() for own, part in zip(names, parts, strict=True)}
        save_file(written, scratch / path.name, {"format": "pt"})


def _apart(name: str) -> list[str]:
    """Return the names of a layer's or tensor's parts; its own where it is not fused."""
    for whole, parts in _FUSED.items():
        if whole in name.split("."):
            return [".".join(part if step == whole else step for step in name.split(".")) for part in parts]
    return [name]

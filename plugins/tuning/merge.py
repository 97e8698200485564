"""MergeAdapterWeights: adds an adapter into its base, in float, and writes plain weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass

__all__ = ["MergeAdapterWeights"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class MergeAdapterWeights(Pass):
    """Merge an adapter into the base model's weights.

    Rules: 1. Sums are formed in float32 and rounded once, to the type that the base is stored in. 2. The base is the
    model's own, unquantized. 3. Tokenizer files stay as they are; the files of all adapters go, since
    they were trained on another base than what is now there. 4. A model that SliceGPT cut stays one.
    """

    class Config(PassConfig):
        """What merging can be told."""

        torch_dtype: str | None = Field(
            None, description="Type of the merged weights; not given: as the base is stored."
        )
        adapter_name: str | None = Field(
            None, description="Which of several adapters is merged; the others go. Not given: the one in use."
        )

    version: ClassVar[int] = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse a model without an adapter, or one whose base is quantized."""
        if not info.attributes.get("adapter"):
            raise ConfigError(
                "MergeAdapterWeights: the model has no adapter; put LoRA or another tuning pass before it"
            )
        named = dict(info.attributes.get("adapters") or {})
        wanted = None if config is None else config.adapter_name
        if wanted is not None and wanted not in named:
            there = f"there are {', '.join(named)}" if named else "its adapter has no name"
            raise ConfigError(f"MergeAdapterWeights: the model has no adapter {wanted!r}; {there}")
        if quantization := info.attributes.get("quantization"):
            raise ConfigError(
                f"MergeAdapterWeights: the base is quantized ({quantization}); merging would round the update away; "
                "merge before quantizing"
            )
        return super().plan(info, config, accelerator).with_(adapter=None, adapters=None)

    def run(self, model: Model, config: Any, context: PassContext) -> Model:
        """Write the merged weights in place of the base's and take the adapter's files out."""
        import torch

        from drupe.plugins.huggingface.loading import adapter_folder, load_model, torch_dtype
        from drupe.plugins.huggingface.scrub import scrub_folder
        from drupe.plugins.huggingface.stored_type import stored_dtype

        named = dict(model.attributes.get("adapters") or {})
        if config.adapter_name is not None:
            model = replace(model, attributes={**model.attributes, "adapter": named[config.adapter_name]})
        folder = adapter_folder(model)
        if folder is None or not (folder / "adapter_config.json").is_file():
            raise ConfigError(f"MergeAdapterWeights: {model.attributes.get('adapter')!r} holds no adapter_config.json")
        torch.set_num_threads(context.resources.thread_count)
        dtype = torch_dtype(config.torch_dtype) if config.torch_dtype else stored_dtype(model)
        adapted = load_model(model, dtype=torch.float32)
        _untie(adapted)
        merged = adapted.merge_and_unload(safe_merge=True)
        context.progress(1, 2, "merged")
        if dtype != torch.float32:
            merged.to(dtype)
        out = context.output_dir
        if model.kind == "sliced":
            _write_sliced(merged, dtype, model, out)
        else:
            merged.config._name_or_path = ""
            merged.save_pretrained(out)
        scrub_folder(out)
        places = tuple(f"{place.rstrip('/')}/" for place in {str(model.attributes["adapter"]), *named.values()})
        gone = [
            name
            for name in model.files
            if name.startswith(places)
            or name in _WEIGHTS
            or (name.startswith(("model-", "pytorch_model-")) and name.endswith((".safetensors", ".bin")))
        ]
        context.progress(2, 2, "written")
        attributes = {"adapter": None, "adapters": None, "dtype": str(dtype).removeprefix("torch.")}
        return model.derive(add_dir=out, remove=gone, attributes=attributes)


def _write_sliced(merged: Any, dtype: Any, model: Model, out: Path) -> None:
    """Write the weights under their names in the sliced model, and their type into its config."""
    from drupe.plugins.huggingface.loading import read_config
    from drupe.plugins.quantization.slicing.weights import write_weights

    out.mkdir(parents=True, exist_ok=True)
    write_weights(merged, dtype, out)
    config = read_config(model.folder)
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")


def _untie(adapted: Any) -> None:
    """Give embedding and output layer weights of their own where they share one and an adapter changes either.

    Merging into a shared weight would change the other layer as well, which the adapter never did.
    """
    import torch

    base = adapted.get_base_model()
    if not getattr(base.config, "tie_word_embeddings", False):
        return
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    if all(type(layer).__module__.startswith("torch.") for layer in layers):
        return
    head = layers[1]
    for name in ("base_layer", "original_module"):
        head = getattr(head, name, head)
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = False

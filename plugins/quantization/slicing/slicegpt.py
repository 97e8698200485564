"""SliceGPT: the states of a decoder are cut to those directions that its texts use, and its weights with them.

Ashkboos et al. 2024, arXiv 2401.15024.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, DataRef, FloatRange, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.quantization.calibration import OWN_TEXT, calibration_tokens
from drupe.plugins.quantization.config import check_device, device_of
from drupe.plugins.quantization.decoders import check_float_decoder, check_zeros_stay
from drupe.plugins.quantization.probe import Probe
from drupe.plugins.quantization.saving import copy_beside
from drupe.plugins.quantization.slicing.slicing import Slicer, fuse_norms
from drupe.plugins.quantization.slicing.structure import read_structure

__all__ = ["SliceGPT", "SliceGPTConfig"]


class SliceGPTConfig(PassConfig):
    """How much is cut, and what tells where."""

    sparsity: float = searchable(
        0.25, FloatRange(0.1, 0.4), doc="Share of the states' width that is cut off.", ge=0, lt=1
    )
    calibration_data_config: DataRef | None = Field(
        None, description="Text whose states are looked at; without it the model writes some itself."
    )
    calibration_nsamples: int = Field(128, ge=1, description="How many sequences of it, the first ones.")
    calibration_seqlen: int = Field(
        2048, ge=2, description="Tokens of a sequence at most; 256 where the model writes them."
    )
    calibration_batch_size: int = Field(16, ge=1, description="Sequences of one length that run at once.")
    seed: int | None = Field(None, ge=0, description="For the orientation; default: the workflow's seed.")
    round_interval: int = Field(8, ge=1, description="The width that is left is a multiple of it.")
    final_orientation: Literal["random", "pca"] = searchable(
        "random",
        Choice("random", "pca"),
        doc="random: what is left is turned at random, so that a quantizer behind finds no columns that stand out; "
        "pca: the directions stay in order of their power.",
    )
    slice_head: bool = Field(False, description="Cut the states that the head reads as well.")
    device: str | None = Field(
        None, description="Where the model is calculated: cpu, cuda; default: as the target has."
    )


class SliceGPT(Pass):
    """Cuts the states of a decoder, and the rows and columns of its weights that belong to what was cut.

    Rules: 1. A norm's gain, bias and mean go into the layers around it, after which the logits must be what they were;
    that is checked before anything is cut. 2. The states between the parts of each block are turned onto the principal
    directions of what calibration gives there, blocks before it being sliced already, and the last ones are cut off.
    3. Where one block's directions meet the next's, a matrix on the way past turns the one into the other. 4. Embedding
    and head are two tables afterwards, where they were one: a small model with a large vocabulary may grow, which the
    report tells. 5. Which decoders can be sliced is found by following the states through one call; others are refused
    before calibration. 6. What calibrates decides what is kept: SmolLM2-135M, cut by a quarter along 4,096 tokens of
    Python's documentation, went from a perplexity of 9.43 to 9.56 on other pages of it, and from 33.4 to 100 on prose
    about another subject. Give text of every kind that the model will meet, and many more tokens than the states are
    wide.

    The result is of a kind of its own, `sliced`, since transformers can't say what it is: every metric takes it (with
    the runtime `hf`), LoRA and its kin win back what was lost and MergeAdapterWeights makes a sliced model again,
    OnnxConversion exports it and the passes for ONNX graphs go on from there. What needs a plain Hugging Face model
    (quantizers of PyTorch models, ModelBuilder) refuses it before work starts. It holds `sliced.safetensors`, config
    and tokenizer, and `sliced_decoder.py`, which loads it anywhere: `sliced_decoder.load(FOLDER)` needs PyTorch,
    transformers and safetensors. Started from again it is an input model of type SlicedModel.
    """

    Config: ClassVar[type[PassConfig]] = SliceGPTConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse adapters, quantized models and models that are no decoders."""
        planned = super().plan(info, config, accelerator)
        check_float_decoder(self.spec.name, "slices", info)
        check_zeros_stay(self.spec.name, f"put {self.spec.name} before the pruning", info)
        return planned.with_(sparsity=config.sparsity)

    def check(self, config: Any, accelerator: Accelerator) -> None:
        """Refuse a device that is not there."""
        check_device(self.spec.name, config.device)

    def rehearsal(self, config: Any) -> Any:
        """Two short sequences."""
        return config.model_copy(update={"calibration_nsamples": 2, "calibration_seqlen": 16})

    def run(self, model: Model, config: SliceGPTConfig, context: PassContext) -> Model:
        """Fuse, check, calibrate and slice in float32; write in the type that the model is stored in."""
        import torch

        from drupe.plugins.huggingface.loading import load_model
        from drupe.plugins.huggingface.stored_type import stored_dtype

        torch.set_num_threads(context.resources.thread_count)
        stored = stored_dtype(model)
        network = load_model(model, dtype="float32", device=device_of(config.device, context))
        before = sum(parameter.numel() for parameter in network.parameters())
        seed = context.seed if config.seed is None else config.seed
        generator = torch.Generator().manual_seed(seed)
        probe = Probe(network, generator)
        structure = read_structure(self.spec.name, network, probe.ids)
        width = self._width(structure.hidden_size, config)
        tokens = calibration_tokens(
            self.spec.name,
            network,
            model,
            config.calibration_data_config,
            config.calibration_nsamples,
            config.calibration_seqlen,
            context,
            written=OWN_TEXT,
        )
        if (count := sum(row.numel() for row in tokens)) < 2 * structure.hidden_size:
            context.log.warning(
                "%s: %d tokens calibrate %d directions, too few to tell which ones texts use; give more text",
                self.spec.name,
                count,
                structure.hidden_size,
            )
        with torch.no_grad():
            shape = fuse_norms(self.spec.name, network, structure)
            probe.check(self.spec.name, network)
            slicer = Slicer(
                network,
                structure,
                _batches(tokens, config.calibration_batch_size),
                width,
                orientation=config.final_orientation,
                slice_head=config.slice_head,
                generator=generator,
                context=context,
            )
            slicer.slice()
            if width == structure.hidden_size:
                probe.check(self.spec.name, network)
        after = sum(parameter.numel() for parameter in network.parameters())
        context.report["width"] = {"before": structure.hidden_size, "after": width}
        context.report["parameters"] = {"before": before, "after": after}
        context.report["lost"] = {"mean": sum(slicer.lost) / len(slicer.lost), "most": max(slicer.lost)}
        if after >= before:
            context.log.warning(
                "%s: the model has %d parameters now and had %d: what the shortcuts and the head's own table add is "
                "more than was cut; a larger sparsity, or slice_head, cuts more",
                self.spec.name,
                after,
                before,
            )
        self._write(network, shape, stored, model, context)
        return Model.from_dir("sliced", context.output_dir, {**model.attributes, "sparsity": config.sparsity})

    def _width(self, size: int, config: SliceGPTConfig) -> int:
        width = int(size * (1 - config.sparsity) + 1e-9)
        width -= width % config.round_interval
        if width < 1:
            raise ConfigError(
                f"{self.spec.name}: of {size} a sparsity of {config.sparsity} leaves no multiple of round_interval "
                f"({config.round_interval}); give less of either"
            )
        # A width that can't be rounded down without cutting is left alone.
        return size if config.sparsity == 0 else width

    def _write(self, network: Any, shape: dict[str, Any], stored: Any, model: Model, context: PassContext) -> None:
        from drupe.plugins.huggingface.files import copy_file
        from drupe.plugins.huggingface.loading import read_config
        from drupe.plugins.huggingface.scrub import scrub_folder
        from drupe.plugins.quantization.slicing import sliced_decoder
        from drupe.plugins.quantization.slicing.weights import write_weights

        out = context.output_dir
        out.mkdir(parents=True, exist_ok=True)
        write_weights(network, stored, out)
        config = {**read_config(model.folder), "tie_word_embeddings": False, "slicing": shape}
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (out / "config.json").write_text(text + "\n", encoding="utf-8")
        copy_file(Path(sliced_decoder.__file__), out / "sliced_decoder.py")
        copy_beside(model, context)
        scrub_folder(out)


def _batches(tokens: Sequence[Any], size: int) -> list[Any]:
    """Return sequences (1, n) joined to batches (b, n) of one length, b at most `size`, in order."""
    import torch

    found: list[Any] = []
    waiting: list[Any] = []
    for row in tokens:
        if waiting and (len(waiting) == size or waiting[0].shape != row.shape):
            found.append(torch.cat(waiting))
            waiting = []
        waiting.append(row)
    return [*found, torch.cat(waiting)]

"""SpinQuant: the states of a decoder are rotated so that rounding costs least, and the model says what it said.

Liu et al. 2024, arXiv 2405.16406; the rotations that need no other operators when the model runs (R1 and R2).
"""

from __future__ import annotations

from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.quantization.calibration import OWN_TEXT, calibration_tokens
from drupe.plugins.quantization.config import check_device, device_of
from drupe.plugins.quantization.decoders import check_float_decoder, check_zeros_stay
from drupe.plugins.quantization.layers import Scheme, schemes
from drupe.plugins.quantization.probe import Probe
from drupe.plugins.quantization.saving import save_decoder
from drupe.plugins.quantization.slicing.structure import Structure, read_structure
from drupe.plugins.quantization.spinning.config import SpinQuantConfig

__all__ = ["SpinQuant", "SpinQuantConfig"]


class SpinQuant(Pass):
    """Rotates the weights of a decoder by rotations that were learned against its own rounding.

    Rules: 1. The logits stay what they were, which is checked in float32 before anything is written: a quantizer behind
    it does the rounding, as its own config says. 2. Learned are a rotation of the states (R1) and one of each block's
    values (R2), by Cayley SGD, starting from QuaRot's; gradients pass through the rounding. 3. Every eighth sequence is
    kept apart and judges (all of them, where there are fewer): what was learned is written only where it costs less
    there than what learning began with. 4. The paper's rotations within a running model (R3, R4) take operators that
    plain models don't have; there are none here. 5. Where norms take the mean away (OPT, GPT-NeoX, Phi), the rotation
    keeps the mean. 6. Embedding and head are two tables afterwards, where they were one. 7. Which decoders can be
    rotated is found by following the states through one call; others are refused before calibration. 8. SmolLM2-135M,
    four bits with a zero point, on 1,024 tokens of Python's documentation that were not learned from: of the 1.69 nats
    a token that rounding by rows cost after a Hadamard rotation, 0.30 were left after 12 steps on 512 other tokens
    each; of 0.38 with groups of 32, 0.08 after 8 steps. 9. A run that was stopped goes on from its last checkpoint.
    """

    Config: ClassVar[type[PassConfig]] = SpinQuantConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse adapters, quantized models and models that are no decoders."""
        planned = super().plan(info, config, accelerator)
        check_float_decoder(self.spec.name, "rotates", info)
        check_zeros_stay(self.spec.name, f"put {self.spec.name} before the pruning", info)
        return planned.with_(rotation="learned")

    def check(self, config: Any, accelerator: Accelerator) -> None:
        """Refuse a device that is not there."""
        check_device(self.spec.name, config.device)

    def rehearsal(self, config: Any) -> Any:
        """One step on two short sequences."""
        less = config.training_args.model_copy(update={"max_steps": 1})
        return config.model_copy(update={"nsamples": 2, "seqlen": 16, "training_args": less})

    def run(self, model: Model, config: SpinQuantConfig, context: PassContext) -> Model:
        """Learn in float32 (rotations in float64), merge, check, write in the type that the model is stored in."""
        import torch

        from drupe.plugins.huggingface.loading import load_model
        from drupe.plugins.huggingface.stored_type import stored_dtype
        from drupe.plugins.quantization.spinning.learning import Learning

        torch.set_num_threads(context.resources.thread_count)
        stored = stored_dtype(model)
        network = load_model(model, dtype="float32", device=device_of(config.device, context))
        network.requires_grad_(False)
        seed = context.seed if config.seed is None else config.seed
        generator = torch.Generator().manual_seed(seed)
        probe = Probe(network, generator)
        structure = read_structure(self.spec.name, network, probe.ids)
        grids = self._schemes(network, structure, config)
        tokens = calibration_tokens(
            self.spec.name,
            network,
            model,
            config.data_config,
            config.nsamples,
            config.seqlen,
            context,
            written=OWN_TEXT,
        )
        decoder = self._turned(network, structure, config, generator)
        Learning(self.spec.name, decoder, tokens, grids, config, seed, context).learn()
        decoder.merge()
        context.report["largest_change"] = probe.check(self.spec.name, network)
        context.report["rotations"] = {"states": 1, "values": len(decoder.values)}
        save_decoder(network, stored, model, context)
        return Model.from_dir("hf", context.output_dir, {**model.attributes, "rotation": "learned"})

    def _schemes(self, network: Any, structure: Structure, config: SpinQuantConfig) -> dict[str, Scheme]:
        if config.w_bits == 16:
            return {}
        parts = (structure.attention, structure.feed_forward)
        layers = {
            f"{structure.blocks}.{number}.{name}": block.get_submodule(name)
            for number, block in enumerate(network.get_submodule(structure.blocks))
            for part in parts
            for name in (*part.reads, part.writes)
        }
        return schemes(self.spec.name, layers, Scheme(config.w_bits, config.w_group_size, config.w_symmetric), {})

    def _turned(self, network: Any, structure: Structure, config: SpinQuantConfig, generator: Any) -> Any:
        from drupe.plugins.quantization.spinning.turning import TurnedDecoder

        try:
            return TurnedDecoder(self.spec.name, network, structure, config.rotate_mode, generator)
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self.spec.name}: {error}; give rotate_mode: random") from error

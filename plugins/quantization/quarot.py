"""QuaRot: the residual stream is rotated, so that no channel has outliers, and the model says what it said.

Ashkboos et al. 2024, arXiv 2404.00456; the part that needs no other operators when the model runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import Choice, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.quantization.decoders import check_float_decoder, check_zeros_stay
from drupe.plugins.quantization.hadamard import rotation
from drupe.plugins.quantization.layers import blocks_of
from drupe.plugins.quantization.probe import Probe
from drupe.plugins.quantization.saving import save_decoder
from drupe.plugins.quantization.states import Norm, read_norm, read_states, take_norm, write_states

__all__ = ["QuaRot", "QuaRotConfig"]

_NORMS = {"input_layernorm": "attention", "post_attention_layernorm": "feed-forward"}
_READ = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
    "feed-forward": ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj"),
}
_WRITE = ("self_attn.o_proj", "mlp.down_proj")


class QuaRotConfig(PassConfig):
    """The rotation."""

    rotate_mode: Literal["hadamard", "random"] = searchable(
        "hadamard", Choice("hadamard", "random"), doc="Hadamard's matrix with random signs, or any rotation."
    )
    seed: int | None = Field(None, ge=0, description="For the signs or the rotation; default: the workflow's seed.")


class QuaRot(Pass):
    """Rotates the weights of a decoder of RMS norms.

    Rules: 1. The logits stay what they were, which is checked in float32 before anything is written. 2. Gains of norms
    go into the layers behind them. 3. Values of each head are rotated as well. 4. Embedding and head are two tables
    afterwards, where they were one: only one of them is behind a norm.
    """

    Config: ClassVar[type[PassConfig]] = QuaRotConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse adapters, quantized models and models that are no decoders."""
        planned = super().plan(info, config, accelerator)
        check_float_decoder(self.spec.name, "rotates", info)
        check_zeros_stay(self.spec.name, f"put {self.spec.name} before the pruning", info)
        return planned.with_(rotation=config.rotate_mode)

    def run(self, model: Model, config: QuaRotConfig, context: PassContext) -> Model:
        """Rotate in float64, check, write in the type that the model is stored in."""
        import torch

        from drupe.plugins.huggingface.loading import load_model
        from drupe.plugins.huggingface.stored_type import stored_dtype

        torch.set_num_threads(context.resources.thread_count)
        stored = stored_dtype(model)
        network = load_model(model, dtype="float32")
        generator = torch.Generator().manual_seed(context.seed if config.seed is None else config.seed)
        probe = Probe(network, generator)
        with torch.no_grad():
            self._rotate(network, config.rotate_mode, generator, context)
        context.report["largest_change"] = probe.check(self.spec.name, network)
        save_decoder(network, stored, model, context)
        return Model.from_dir("hf", context.output_dir, {**model.attributes, "rotation": config.rotate_mode})

    def _rotate(self, network: Any, mode: str, generator: Any, context: PassContext) -> None:
        import torch

        prefix, blocks = blocks_of(network)
        head = network.get_output_embeddings()
        norm = _last_norm(network, prefix)
        if head is None or norm is None:
            raise ConfigError(
                f"{self.spec.name}: {type(network).__name__} has no head behind a norm that is known; decoders "
                "that can be rotated are Llama's, Qwen's and Phi-3's"
            )
        states = self._rotation(network.config.hidden_size, mode, generator)
        if getattr(network.config, "tie_word_embeddings", False):
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
            network.config.tie_word_embeddings = False
            context.report["untied"] = True
        embedding = network.get_input_embeddings()
        embedding.weight.data = (embedding.weight.double() @ states).float()
        take_norm(head, self._take(norm, "the last norm"))
        read_states(head, states)
        for number, block in enumerate(blocks):
            context.progress(number, len(blocks), f"rotating block {number + 1} of {len(blocks)}")
            modules = dict(block.named_modules())
            self._know(modules, f"{prefix}.{number}")
            for name, part in _NORMS.items():
                taken = self._take(modules[name], f"{prefix}.{number}.{name}")
                for layer in _READ[part]:
                    if layer in modules:
                        take_norm(modules[layer], taken)
                        read_states(modules[layer], states)
            for layer in _WRITE:
                write_states(modules[layer], states)
            _rotate_values(modules, network.config, lambda size: self._rotation(size, mode, generator))

    def _rotation(self, size: int, mode: str, generator: Any) -> Any:
        try:
            return rotation(size, mode, generator)
        except ValueError as error:
            raise ConfigError(f"{self.spec.name}: {error}; give rotate_mode: random") from error

    def _know(self, modules: Mapping[str, Any], where: str) -> None:
        """Raise ConfigError for a block that has layers or norms whose place in it is not known."""
        import torch

        known = {*_WRITE, *(layer for layers in _READ.values() for layer in layers), *_NORMS}
        absent = [name for name in (*_NORMS, *_WRITE) if name not in modules]
        strange = [
            name
            for name, module in modules.items()
            if name not in known
            and (isinstance(module, torch.nn.Linear) or (name.endswith("norm") and "." not in name) or "expert" in name)
        ]
        if absent or strange:
            what = f"has no {absent[0]}" if absent else f"has {strange[0]}"
            raise ConfigError(
                f"{self.spec.name}: {where} {what}; blocks that can be rotated are Llama's, Qwen's and Phi-3's"
            )

    def _take(self, norm: Any, where: str) -> Norm:
        """Return what an RMS norm does, and take its gain out of it. Raises ConfigError for another norm."""
        import torch

        weight = getattr(norm, "weight", None)
        size = len(weight) if weight is not None else 0
        found = read_norm(norm, size) if size else None
        if found is not None and not found.centred and not bool(found.bias.any()):
            probe = torch.ones(1, size, dtype=norm.weight.dtype)
            # Some norms' gain is their weight, that of others is one more.
            for value in (1.0, 0.0):
                norm.weight.data.fill_(value)
                if torch.allclose(norm(probe), probe, atol=1e-3):
                    return found
        raise ConfigError(
            f"{self.spec.name}: {where} ({type(norm).__name__}) is no RMS norm, so states can't be rotated"
        )


def _last_norm(network: Any, prefix: str) -> Any:
    parent = network.get_submodule(prefix.rpartition(".")[0])
    return getattr(parent, "norm", None) or getattr(parent, "final_layernorm", None)


def _rotate_values(modules: Mapping[str, Any], config: Any, make: Any) -> None:
    """Rotate the values within each head, and turn them back where heads are joined."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    turn = make(size)
    fused = modules.get("self_attn.qkv_proj")
    layer = fused if fused is not None else modules["self_attn.v_proj"]
    rows = slice((heads + groups) * size, (heads + 2 * groups) * size) if fused is not None else slice(None)
    values = layer.weight.data[rows].double().reshape(groups, size, -1)
    layer.weight.data[rows] = (turn.T @ values).reshape(groups * size, -1).float()
    if layer.bias is not None:
        layer.bias.data[rows] = (layer.bias.data[rows].double().reshape(groups, size) @ turn).reshape(-1).float()
    output = modules["self_attn.o_proj"]
    joined = output.weight.data.double().reshape(len(output.weight), heads, size)
    output.weight.data = (joined @ turn).reshape(len(output.weight), heads * size).float()

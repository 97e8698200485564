"""AutoAWQQuantizer: columns that see large inputs are scaled up before rounding, and what feeds them is scaled down.

Lin et al. 2023, arXiv 2306.00978. A scale's exponent and each group's range are chosen by the layers' own output
errors, which follow from the second moments of their inputs; no library does this on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from drupe.core.config import DataRef, PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.quantization.blocks import Blocks, Part
from drupe.plugins.quantization.calibration import calibration_tokens
from drupe.plugins.quantization.checkpoint import QuantizedLayer
from drupe.plugins.quantization.config import QuantizerConfig, WeightQuantizer
from drupe.plugins.quantization.grid import dequantize, fit_to_inputs, quantize
from drupe.plugins.quantization.layers import Scheme

__all__ = ["AutoAWQQuantizer", "AutoAWQQuantizerConfig"]

_STEPS = 20
"""How many exponents from 0 to 1 are tried."""
_FED_BY_NORM = (
    (("input_layernorm",), ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj")),
    (
        ("pre_feedforward_layernorm", "post_attention_layernorm"),
        ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.fc1"),
    ),
)
_FED_BY_LAYER = (("mlp.up_proj", "mlp.down_proj"), ("self_attn.v_proj", "self_attn.o_proj"))
_OLIVE = {"w_bit": "bits", "q_group_size": "group_size"}


class AutoAWQQuantizerConfig(QuantizerConfig):
    """Options of scaling, and what it is calibrated with."""

    data_config: DataRef | None = Field(
        None, description="Text that calibrates; without it the model writes some itself."
    )
    nsamples: int = Field(64, ge=1, description="How many sequences calibrate.")
    seqlen: int = Field(256, ge=2, description="Tokens of a sequence at most.")
    duo_scaling: bool = Field(True, description="Scales follow inputs and weights; false: inputs alone.")
    modules_to_not_convert: list[str] = Field(
        default_factory=list, description="Parts of names: layers that have one in theirs stay as they are."
    )
    version: Literal["gemm"] = Field(
        "gemm", description="Layout of AutoAWQ's own files; what is written is the layout that ModelBuilder reads."
    )
    pack_model_for_onnx_conversion: Literal[False] = Field(
        False, description="The result is for ModelBuilder, which makes the graph."
    )

    @model_validator(mode="before")
    @classmethod
    def _olives_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        out = dict(values)
        for theirs, ours in _OLIVE.items():
            if theirs in out:
                if ours in out:
                    raise ValueError(f"{theirs} and {ours} are the same option; give one of them")
                out[ours] = out.pop(theirs)
        if "zero_point" in out:
            if "sym" in out:
                raise ValueError("zero_point and sym are opposites; give one of them")
            out["sym"] = not out.pop("zero_point")
        return out


@dataclass(frozen=True)
class _Group:
    """Layers of a block that have one input. source: the norm or layer that gives it; rows: it is a layer, whose rows
    are scaled."""

    source: Any
    names: Sequence[str]
    rows: bool


class AutoAWQQuantizer(WeightQuantizer):
    """Scales, then rounds, block by block; each block sees what the quantized blocks before it give.

    Rules: 1. Scaling leaves what a block gives as it was; where it does not, it is undone and told. 2. Inputs' sizes
    are root mean squares. 3. Layers whose input comes from no norm or layer that can be scaled are rounded as they are.
    """

    Config: ClassVar[type[PassConfig]] = AutoAWQQuantizerConfig
    version = 1

    def rehearsal(self, config: Any) -> Any:
        """Two short sequences."""
        return config.model_copy(update={"nsamples": 2, "seqlen": 16})

    def quantize_layers(
        self,
        network: Any,
        chosen: Mapping[str, Scheme],
        model: Model,
        config: AutoAWQQuantizerConfig,
        context: PassContext,
    ) -> dict[str, QuantizedLayer]:
        """Gather the inputs of a block's layers, scale the block, round it."""
        left = [part for part in config.modules_to_not_convert if not any(part in name for name in chosen)]
        if left:
            raise ConfigError(
                f"{self.spec.name}: modules_to_not_convert: no layer has {left[0]!r} in its name; layers are called "
                f"{', '.join(list(chosen)[:3])}…"
            )
        wanted = {
            name: scheme
            for name, scheme in chosen.items()
            if not any(part in name for part in config.modules_to_not_convert)
        }
        tokens = calibration_tokens(
            self.spec.name, network, model, config.data_config, config.nsamples, config.seqlen, context
        )
        found: dict[str, QuantizedLayer] = {}
        scaled: list[str] = []
        undone: list[str] = []

        def solve(part: Part) -> None:
            moments = dict(part.moments)
            for group in _groups(part, wanted):
                schemes = [wanted[name] for name in group.names]
                scale = _best_scale(part, group, moments, schemes, duo=config.duo_scaling, search=config.scale_search)
                (scaled if _apply(part, group, scale, moments) else undone).extend(group.names)
            for name, layer in part.layers.items():
                found[name] = _round(layer.weight.detach(), moments[name], wanted[name], search=config.scale_search)
                layer.weight.data = found[name].weights().to(layer.weight)

        Blocks(network, tokens, context).each_block(set(wanted), solve)
        if not scaled:
            context.log.warning(
                "%s: no layer of this architecture could be scaled; all were rounded as they are", self.spec.name
            )
        context.report["scaled"] = {"layers": len(scaled), "left_as_they_were": undone}
        return {name: found[name] for name in wanted}


def _groups(part: Part, wanted: Mapping[str, Scheme]) -> list[_Group]:
    modules = dict(part.block.named_modules())
    found = []
    for norms, layers in _FED_BY_NORM:
        norm = next((modules[name] for name in norms if name in modules), None)
        names = [f"{part.prefix}.{name}" for name in layers if f"{part.prefix}.{name}" in part.layers]
        if norm is not None and names and all(name in wanted for name in names):
            found.append(_Group(norm, names, rows=False))
    for source, target in _FED_BY_LAYER:
        name = f"{part.prefix}.{target}"
        # With fewer heads of values than of queries, a row of values feeds several columns.
        if name in part.layers and source in modules and modules[source].out_features == modules[target].in_features:
            found.append(_Group(modules[source], [name], rows=True))
    return found


def _best_scale(
    part: Part, group: _Group, moments: Mapping[str, Any], schemes: Sequence[Scheme], *, duo: bool, search: bool
) -> Any:
    """Return the scale (columns,) with which the layers' outputs change least."""
    import torch

    moment = moments[group.names[0]]
    inputs = moment.diagonal().clamp(min=0).sqrt()
    inputs = inputs / inputs.mean().clamp(min=1e-8)
    weights = [part.layers[name].weight.detach().float() for name in group.names]
    sizes = torch.ones_like(inputs)
    if duo:
        shares = [_within_groups(weight, scheme.group_size) for weight, scheme in zip(weights, schemes, strict=True)]
        sizes = torch.cat(shares).mean(0).clamp(min=1e-4)
    best, least = torch.ones_like(inputs), None
    for step in range(_STEPS):
        share = step / _STEPS
        scale = (inputs.clamp(min=1e-4) ** share / sizes ** ((1 - share) if duo and step else 0)).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        loss = 0.0
        for weight, scheme in zip(weights, schemes, strict=True):
            turned = weight * scale
            groups = turned.reshape(len(turned), -1, scheme.group_size)
            low, zero = fit_to_inputs(groups, None, scheme.bits, scheme.symmetric, search=False)
            rounded = dequantize(quantize(groups, low, zero, scheme.bits), low, zero).reshape_as(turned) / scale
            change = rounded - weight
            loss += float(((change @ moment) * change).sum())
        if least is None or loss < least:
            best, least = scale, loss
    return best


def _within_groups(weight: Any, size: int) -> Any:
    """Return the weights' magnitudes as shares of the largest of their group."""
    groups = weight.abs().reshape(len(weight), -1, size)
    return (groups / groups.amax(-1, keepdim=True).clamp(min=1e-8)).reshape_as(weight)


def _apply(part: Part, group: _Group, scale: Any, moments: dict[str, Any]) -> bool:
    """Scale the layers' columns up and what feeds them down; undo it and return False where the block then differs."""
    import torch

    layers = [part.layers[name] for name in group.names]
    before = part.run()
    probe = torch.linspace(-2, 2, len(scale)).to(scale).roll(7)
    given = None if group.rows else group.source(probe)
    kept = [parameter.data.clone() for parameter in (*group.source.parameters(), *(layer.weight for layer in layers))]
    for parameter in group.source.parameters():
        parameter.data /= scale[:, None].to(parameter) if parameter.dim() == 2 else scale.to(parameter)
    for layer in layers:
        layer.weight.data *= scale.to(layer.weight)
    # The norm must give what was asked, and be what feeds these layers.
    as_asked = given is None or torch.allclose(group.source(probe) * scale, given, rtol=1e-3, atol=1e-6)
    if not as_asked or not torch.allclose(part.run(), before, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        changed = (*group.source.parameters(), *(layer.weight for layer in layers))
        for parameter, value in zip(changed, kept, strict=True):
            parameter.data = value
        return False
    for name in group.names:
        moments[name] = moments[name] / scale[:, None] / scale[None, :]
    return True


def _round(weights: Any, moment: Any, scheme: Scheme, *, search: bool) -> QuantizedLayer:
    import torch

    rows, columns = weights.shape
    size = scheme.group_size
    groups = weights.float().reshape(rows, columns // size, size)
    inside = torch.stack([moment[n : n + size, n : n + size] for n in range(0, columns, size)])
    scale, zero = fit_to_inputs(groups, inside, scheme.bits, scheme.symmetric, search=search)
    q = quantize(groups, scale, zero, scheme.bits).to(torch.uint8).reshape(rows, columns).cpu()
    zeros = None if scheme.symmetric else zero[..., 0].to(torch.uint8).cpu()
    return QuantizedLayer(scheme.bits, size, q, scale[..., 0].cpu(), zeros)

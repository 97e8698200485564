"""Gptq: weights are rounded column by column, and what rounding breaks is mended in the columns that follow.

Frantar et al. 2022, arXiv 2210.17323. Groups are static: their grids are fitted in the layer's own order of columns, so
the result needs no index of groups even where columns are taken by importance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from drupe.core.config import DataRef, FloatRange, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.model import Model
from drupe.plugins.quantization.blocks import Blocks
from drupe.plugins.quantization.calibration import calibration_tokens
from drupe.plugins.quantization.checkpoint import QuantizedLayer
from drupe.plugins.quantization.config import QuantizerConfig, WeightQuantizer
from drupe.plugins.quantization.grid import dequantize, fit, quantize
from drupe.plugins.quantization.hessian import inverse_root, solvable
from drupe.plugins.quantization.layers import Scheme

__all__ = ["Gptq", "GptqConfig", "round_with_hessian"]

_COLUMNS = 128
"""Columns that are mended together; those behind them once a block."""


class GptqConfig(QuantizerConfig):
    """Options of the solver, and what it is calibrated with."""

    data_config: DataRef | None = Field(
        None, description="Text that calibrates; without it the model writes some itself."
    )
    nsamples: int = Field(64, ge=1, description="How many sequences calibrate.")
    seqlen: int = Field(256, ge=2, description="Tokens of a sequence at most.")
    damp_percent: float = searchable(
        0.01, FloatRange(0.001, 0.1, log=True), doc="Share of the mean that is added to the Hessian's diagonal.", gt=0
    )
    desc_act: bool = Field(True, description="Take columns by their importance; groups stay in the layer's own order.")


class Gptq(WeightQuantizer):
    """Quantizes block by block; each block sees what the quantized blocks before it give."""

    Config: ClassVar[type[PassConfig]] = GptqConfig
    version = 1
    keeps_zeros = False

    def rehearsal(self, config: Any) -> Any:
        """Two short sequences."""
        return config.model_copy(update={"nsamples": 2, "seqlen": 16})

    def quantize_layers(
        self, network: Any, chosen: Mapping[str, Scheme], model: Model, config: GptqConfig, context: PassContext
    ) -> dict[str, QuantizedLayer]:
        """Gather each layer's inputs, then solve it."""
        tokens = calibration_tokens(
            self.spec.name, network, model, config.data_config, config.nsamples, config.seqlen, context
        )
        found: dict[str, QuantizedLayer] = {}

        def solve(name: str, layer: Any, hessian: Any) -> None:
            found[name] = round_with_hessian(
                self.spec.name,
                name,
                layer.weight.detach(),
                hessian,
                chosen[name],
                damp=config.damp_percent,
                by_importance=config.desc_act,
                search=config.scale_search,
            )
            layer.weight.data = found[name].weights().to(layer.weight)

        Blocks(network, tokens, context).each_layer(set(chosen), solve)
        return {name: found[name] for name in chosen}


def round_with_hessian(
    pass_name: str,
    name: str,
    weights: Any,
    hessian: Any,
    scheme: Scheme,
    *,
    damp: float,
    by_importance: bool,
    search: bool,
) -> QuantizedLayer:
    """Return a layer (rows, columns) rounded so that its outputs change least.

    hessian: the inputs' second moments (columns, columns). Raises PassError where they can't be solved.
    """
    import torch

    work = weights.float().clone()
    rows, columns = work.shape
    curvature, dead = solvable(hessian)
    work[:, dead] = 0.0
    group = scheme.group_size
    scale, zero = fit(work.reshape(rows, -1, group), scheme.bits, scheme.symmetric, search=search)
    scale, zero = scale[..., 0], zero[..., 0]
    order = torch.argsort(curvature.diagonal(), descending=True, stable=True) if by_importance else None
    if order is not None:
        work, curvature = work[:, order], curvature[order][:, order]
    of_group = (torch.arange(columns, device=work.device) if order is None else order) // group
    inverse = inverse_root(pass_name, name, curvature, damp)
    q = torch.zeros_like(work)
    for begin in range(0, columns, _COLUMNS):
        end = min(begin + _COLUMNS, columns)
        errors = torch.zeros_like(work[:, begin:end])
        for column in range(begin, end):
            if order is None and column % group == 0:
                # In order, a group is fitted to what the columns before it have made of it.
                fitted = fit(work[:, column : column + group], scheme.bits, scheme.symmetric, search=search)
                scale[:, column // group], zero[:, column // group] = fitted[0][:, 0], fitted[1][:, 0]
            step, middle = scale[:, of_group[column]], zero[:, of_group[column]]
            q[:, column] = quantize(work[:, column], step, middle, scheme.bits)
            error = (work[:, column] - dequantize(q[:, column], step, middle)) / inverse[column, column]
            work[:, column + 1 : end] -= error[:, None] * inverse[column, column + 1 : end]
            errors[:, column - begin] = error
        work[:, end:] -= errors @ inverse[begin:end, end:]
    if order is not None:
        q = q[:, torch.argsort(order)]
    zeros = None if scheme.symmetric else zero.to(torch.uint8).cpu()
    return QuantizedLayer(scheme.bits, group, q.to(torch.uint8).cpu(), scale.cpu(), zeros)

"""SparseGPT: weights are set to zero where it costs a layer's outputs least, and the others mend what that breaks.

Frantar & Alistarh 2023, arXiv 2301.00774.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import DataRef, FloatRange, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.quantization.blocks import Blocks
from drupe.plugins.quantization.calibration import OWN_TEXT, calibration_tokens
from drupe.plugins.quantization.config import check_device, device_of
from drupe.plugins.quantization.decoders import check_float_decoder
from drupe.plugins.quantization.hessian import inverse_root, solvable
from drupe.plugins.quantization.layers import blocks_of
from drupe.plugins.quantization.saving import save_decoder

__all__ = ["SparseGPT", "SparseGPTConfig", "prune_with_hessian"]


Share = Annotated[float, Field(gt=0, lt=1)]
Pattern = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=2)]]


class SparseGPTConfig(PassConfig):
    """Which weights become zero, and what tells which ones."""

    sparsity: Share | Pattern = searchable(
        0.5,
        FloatRange(0.1, 0.7),
        doc="Share of each layer's weights that become zero, or [n, m]: n of every m weights that follow each other "
        "in a row.",
    )
    blocksize: int = Field(128, ge=1, description="Columns whose zeros are chosen together, where no pattern says how.")
    percdamp: float = Field(0.01, gt=0, le=1, description="Share of the mean that is added to the Hessian's diagonal.")
    min_layer: int | None = Field(None, ge=0, description="Prune blocks from this number on; the first is 0.")
    max_layer: int | None = Field(None, ge=1, description="Prune blocks below this number.")
    layer_name_filter: str | list[str] | None = Field(
        None, description="Prune only layers whose name contains one of these texts."
    )
    data_config: DataRef | None = Field(
        None, description="Text that calibrates; without it the model writes some itself."
    )
    nsamples: int = Field(128, ge=1, description="How many sequences calibrate, the first ones.")
    seqlen: int = Field(2048, ge=2, description="Tokens of a sequence at most; 256 where the model writes them.")
    compute_device: str | None = Field(
        None, description="Where the model is calculated: cpu, cuda; auto or default: as the target has."
    )

    @model_validator(mode="after")
    def _together(self) -> SparseGPTConfig:
        if isinstance(self.sparsity, tuple):
            zeros, many = self.sparsity
            if zeros >= many:
                raise ValueError(
                    f"sparsity [{zeros}, {many}] leaves nothing: the first number is how many of the second become zero"
                )
            if self.blocksize % many:
                raise ValueError(
                    f"blocksize {self.blocksize} is no multiple of {many}, whose zeros are chosen together "
                    f"(sparsity [{zeros}, {many}])"
                )
        if self.min_layer is not None and self.max_layer is not None and self.min_layer >= self.max_layer:
            raise ValueError(f"no block is from min_layer {self.min_layer} on and below max_layer {self.max_layer}")
        return self


class SparseGPT(Pass):
    """Sets weights of a decoder's linear layers to zero, block by block; each sees what the pruned ones before it give.

    Rules: 1. The share, or the pattern, holds in each layer, exactly. 2. The result has the shapes, the type and the
    size of the source: what skips zeros gains by it, others don't. 3. Embeddings, norms, biases and the head stay as
    they are. 4. Rtn, KQuant and AutoAWQQuantizer behind it keep the zeros; what would fill them again (rotations,
    SliceGPT, Gptq, AutoRound) refuses the model before work. 5. Models with experts that are no linear layers of their
    own are refused. 6. SmolLM2-135M without three tenths of its weights, calibrated by 1,024 tokens of one page of
    Python's documentation, went from a perplexity of 9.32 to 9.57 on 256 tokens further down that page; other text was
    not measured.
    """

    Config: ClassVar[type[PassConfig]] = SparseGPTConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse adapters, quantized models and models that are no decoders."""
        planned = super().plan(info, config, accelerator)
        check_float_decoder(self.spec.name, "prunes", info)
        return planned.with_(sparsity=_told(config.sparsity))

    def check(self, config: Any, accelerator: Accelerator) -> None:
        """Refuse a device that is not there."""
        check_device(self.spec.name, _device(config))

    def rehearsal(self, config: Any) -> Any:
        """Two short sequences."""
        return config.model_copy(update={"nsamples": 2, "seqlen": 16})

    def run(self, model: Model, config: SparseGPTConfig, context: PassContext) -> Model:
        """Calibrate and prune in float32; write in the type that the model is stored in."""
        import torch

        from drupe.plugins.huggingface.loading import load_model
        from drupe.plugins.huggingface.stored_type import stored_dtype

        torch.set_num_threads(context.resources.thread_count)
        stored = stored_dtype(model)
        network = load_model(model, dtype="float32", device=device_of(_device(config), context))
        layers = self._layers(network, config)
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
        zeros = 0

        def solve(name: str, layer: Any, hessian: Any) -> None:
            nonlocal zeros
            pruned = prune_with_hessian(
                self.spec.name,
                name,
                _rows(layer),
                hessian,
                config.sparsity,
                blocksize=config.blocksize,
                damp=config.percdamp,
            )
            zeros += int((pruned == 0).sum())
            layer.weight.data = (pruned if _rows(layer) is layer.weight else pruned.T.contiguous()).to(layer.weight)

        Blocks(network, tokens, context).each_layer(set(layers), solve)
        count = sum(layer.weight.numel() for layer in layers.values())
        context.report["pruned"] = {"layers": len(layers), "weights": count, "zeros": zeros}
        save_decoder(network, stored, model, context)
        return Model.from_dir("hf", context.output_dir, {**model.attributes, "sparsity": _told(config.sparsity)})

    def _layers(self, network: Any, config: SparseGPTConfig) -> dict[str, Any]:
        """Return the layers to prune by name. Raises ConfigError where the config fits none of them."""
        import torch
        from transformers.pytorch_utils import Conv1D

        prefix, blocks = blocks_of(network)
        first, behind = config.min_layer or 0, config.max_layer or len(blocks)
        if first >= len(blocks) or behind > len(blocks):
            found = f"max_layer {behind}" if first < len(blocks) else f"min_layer {first}"
            raise ConfigError(
                f"{self.spec.name}: {found} is beyond the model's {len(blocks)} blocks, 0 to {len(blocks) - 1}"
            )
        experts = next((name for name, parameter in blocks.named_parameters() if parameter.ndim > 2), None)
        if experts is not None:
            raise ConfigError(
                f"{self.spec.name}: {prefix}.{experts} holds the weights of several layers ({type(network).__name__}); "
                "decoders whose layers are linear ones can be pruned"
            )
        inside = {
            f"{prefix}.{number}.{name}": module
            for number, block in enumerate(blocks)
            for name, module in block.named_modules()
            if first <= number < behind and isinstance(module, torch.nn.Linear | Conv1D)
        }
        filters = [config.layer_name_filter] if isinstance(config.layer_name_filter, str) else config.layer_name_filter
        for text in filters or ():
            if not any(text in name for name in inside):
                raise ConfigError(
                    f"{self.spec.name}: layer_name_filter: no layer's name contains {text!r}; there are "
                    f"{', '.join(list(inside)[:8])}"
                )
        layers = {name: module for name, module in inside.items() if not filters or any(t in name for t in filters)}
        if not layers:
            raise ConfigError(f"{self.spec.name}: the blocks of {type(network).__name__} have no linear layers")
        if isinstance(config.sparsity, tuple):
            for name, module in layers.items():
                if (columns := _rows(module).shape[1]) % config.sparsity[1]:
                    raise ConfigError(
                        f"{self.spec.name}: sparsity {list(config.sparsity)}: the {columns} columns of {name} are no "
                        f"multiple of {config.sparsity[1]}; leave it out with layer_name_filter, or give a share"
                    )
        return layers


def _device(config: SparseGPTConfig) -> str | None:
    return None if config.compute_device == "auto" else config.compute_device


def _rows(layer: Any) -> Any:
    """Return a layer's weights (outputs, inputs); some have them the other way round."""
    import torch

    return layer.weight if isinstance(layer, torch.nn.Linear) else layer.weight.T


def _told(sparsity: float | Sequence[int]) -> float | list[int]:
    return list(sparsity) if isinstance(sparsity, tuple) else float(sparsity)  # type: ignore[arg-type]


def prune_with_hessian(
    pass_name: str,
    name: str,
    weights: Any,
    hessian: Any,
    sparsity: float | tuple[int, int],
    *,
    blocksize: int,
    damp: float,
) -> Any:
    """Return a layer's weights (rows, columns) with zeros, so that its outputs change least; float32.

    hessian: the inputs' second moments (columns, columns). sparsity: the share of zeros, or (n, m) for n zeros in every
    m columns of a row. blocksize: columns whose zeros are chosen together; a multiple of m. Raises PassError where the
    moments can't be solved.
    """
    import torch

    rows, columns = weights.shape
    curvature, dead = solvable(hessian)
    inverse = inverse_root(pass_name, name, curvature, damp)
    # A weight's square over this is what it costs to set it to zero, once the columns behind it have mended what they
    # can. Weights whose input is always zero cost nothing; those that the share leaves stay what they are.
    prices = inverse.diagonal().square().masked_fill(dead, torch.inf)[:, None]
    # A column of the layer is a row here, so that it lies together in memory.
    work = weights.detach().float().T.clone(memory_format=torch.contiguous_format)
    chosen_before = 0
    for begin in range(0, columns, blocksize):
        end = min(begin + blocksize, columns)
        part, within = work[begin:end], inverse[begin:end, begin:end]
        if isinstance(sparsity, tuple):
            zeros = torch.zeros_like(part, dtype=torch.bool)
        else:
            # Counted from the layer's start, so that the whole layer has its share however it is divided.
            count = round(sparsity * rows * end) - chosen_before
            chosen_before += count
            zeros = _cheapest(part.square() / prices[begin:end], count)
        errors = torch.zeros_like(part)
        for column in range(end - begin):
            if isinstance(sparsity, tuple) and column % sparsity[1] == 0:
                beside = slice(column, column + sparsity[1])
                cost = part[beside].square() / prices[begin:end][beside]
                few = cost.topk(sparsity[0], dim=0, largest=False).indices
                zeros[beside] = zeros[beside].scatter(0, few, True)
            torch.mul(part[column], zeros[column], out=errors[column]).div_(within[column, column])
            part[column + 1 :].addr_(within[column, column + 1 :], errors[column], alpha=-1)
            part[column].masked_fill_(zeros[column], 0.0)
        work[end:].addmm_(inverse[begin:end, end:].T, errors, alpha=-1)
    return work.T.contiguous()


def _cheapest(cost: Any, count: int) -> Any:
    """Return where the `count` smallest entries lie."""
    import torch

    flat = torch.zeros(cost.numel(), dtype=torch.bool, device=cost.device)
    flat[cost.reshape(-1).topk(count, largest=False).indices] = True
    return flat.reshape(cost.shape)

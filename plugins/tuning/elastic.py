"""Elastic adapters: ranks in an order, so that the first k of them are a model of rank k.

Every row of a batch trains a prefix of its own length (nested dropout: Rippel et al. 2014, arXiv 1402.0915; for
adapters Valipour et al. 2022, arXiv 2210.07558, who draw one rank a step). So each step trains all ranks, at the price
of one run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from drupe.core.accelerators import Accelerator
from drupe.core.config import Ordered, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.tuning.rows import Row

__all__ = ["Ranks", "SelectRank"]


class Ranks:
    """Which ranks each token of the present forward pass uses: `mask` is (tokens, largest rank), ones and zeros."""

    def __init__(self, ranks: Sequence[int], seed: int, dtype: Any) -> None:
        self.ranks = tuple(ranks)
        self.seed = seed
        self.dtype = dtype
        self.mask: Any = None

    def set(self, token_ranks: Any) -> None:
        """Set the mask from the rank of each token; 0 stands for all ranks."""
        import torch

        largest = self.ranks[-1]
        wanted = torch.where(token_ranks == 0, largest, token_ranks)
        self.mask = (torch.arange(largest, device=token_ranks.device) < wanted[:, None]).to(self.dtype)

    def assign(self, rows: Sequence[Row], step: int) -> list[Row]:
        """Give the rows of a step their ranks: each rank as often as the others, in an order that the step decides."""
        rng = np.random.default_rng((self.seed, step))
        offset = int(rng.integers(len(self.ranks)))
        drawn = rng.permutation([self.ranks[(offset + i) % len(self.ranks)] for i in range(len(rows))])
        return [replace(row, rank=int(rank)) for row, rank in zip(rows, drawn, strict=True)]


class SelectRank(Pass):
    """Cut an elastic adapter down to its first ranks.

    Rules: 1. The scale of the update stays what it was trained with. 2. Only adapters whose ranks were trained in order
    are cut, and only to a rank that was trained.
    """

    class Config(PassConfig):
        """What can be told."""

        rank: int = searchable(16, Ordered(4, 8, 16, 32), doc="How many ranks are kept.", ge=1)

    version: ClassVar[int] = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse models without an elastic adapter, and ranks that were not trained."""
        ranks = info.attributes.get("elastic_ranks")
        if not info.attributes.get("adapter") or not ranks:
            raise ConfigError("SelectRank: the model has no elastic adapter; put ElasticLoRA before it")
        if config.rank not in ranks:
            raise ConfigError(
                f"SelectRank: rank {config.rank} was not trained; trained are {', '.join(map(str, ranks))}"
            )
        return super().plan(info, config, accelerator).with_(elastic_ranks=None)

    def run(self, model: Model, config: Any, context: PassContext) -> Model:
        """Write the adapter's first ranks in place of all."""
        from safetensors.torch import load_file, save_file

        name = str(model.attributes["adapter"])
        target = context.output_dir / name
        target.mkdir(parents=True, exist_ok=True)
        settings = json.loads((model.folder / name / "adapter_config.json").read_text(encoding="utf-8"))
        share = config.rank / settings["r"]
        settings["lora_alpha"] *= share**0.5 if settings.get("use_rslora") else share
        settings["r"] = config.rank
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (target / "adapter_config.json").write_text(text, encoding="utf-8")
        tensors = load_file(model.folder / name / "adapter_model.safetensors")
        for key, tensor in tensors.items():
            if "lora_A" in key:
                tensors[key] = tensor[: config.rank].contiguous()
            elif "lora_B" in key:
                tensors[key] = tensor[:, : config.rank].contiguous()
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        return model.derive(add_dir=target, prefix=name, attributes={"elastic_ranks": None})

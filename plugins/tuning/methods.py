"""The tuning passes: LoRA, DoRA, LoftQ, QLoRA, LoHa, LoKr."""

from __future__ import annotations

from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.plugins.tuning.config import (
    DoRAConfig,
    ElasticLoRAConfig,
    LoftQConfig,
    LoHaConfig,
    LoKrConfig,
    LoRAConfig,
    QLoRAConfig,
    TuningConfig,
)
from drupe.plugins.tuning.tuning import AdapterPass

__all__ = ["DoRA", "ElasticLoRA", "LoHa", "LoKr", "LoRA", "LoftQ", "QLoRA"]


class LoRA(AdapterPass):
    """Fine-tune with low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    Config: ClassVar[type[TuningConfig]] = LoRAConfig


class DoRA(AdapterPass):
    """Fine-tune magnitude and direction of the weights apart (Liu et al. 2024, arXiv 2402.09353)."""

    Config: ClassVar[type[TuningConfig]] = DoRAConfig


class LoftQ(AdapterPass):
    """Fine-tune from values that make up for four-bit rounding of the base (Li et al. 2023, arXiv 2310.08659).

    Trains against the rounded base; the adapter that is handed out holds what training changed, for the float base.
    """

    Config: ClassVar[type[TuningConfig]] = LoftQConfig


class ElasticLoRA(AdapterPass):
    """Fine-tune one adapter whose first k ranks are a model of rank k, for several k (arXiv 2210.07558).

    A search over ranks then costs one training: `SelectRank` cuts the adapter, and merging goes on from there.
    """

    Config: ClassVar[type[TuningConfig]] = ElasticLoRAConfig

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Say which ranks the result can be cut to."""
        ranks = None if config is None else list(config.ranks)
        return super().plan(info, config, accelerator).with_(elastic_ranks=ranks)

    def run(self, model: Model, config: TuningConfig, context: PassContext) -> Model:
        """Train; the result can be cut."""
        assert isinstance(config, ElasticLoRAConfig)
        return super().run(model, config, context).derive(attributes={"elastic_ranks": list(config.ranks)})


class LoHa(AdapterPass):
    """Fine-tune with Hadamard products of low-rank matrices (arXiv 2108.06098)."""

    Config: ClassVar[type[TuningConfig]] = LoHaConfig


class LoKr(AdapterPass):
    """Fine-tune with Kronecker products (arXiv 2309.14859)."""

    Config: ClassVar[type[TuningConfig]] = LoKrConfig


class QLoRA(AdapterPass):
    """Fine-tune low-rank adapters over a base held in four bits (Dettmers et al. 2023, arXiv 2305.14314).

    Rules: 1. The four-bit base exists only while training; what is handed out is the adapter beside the float base, and
    merging is done there. 2. The four-bit modules never see an evaluation-mode forward pass on a CPU, where
    bitsandbytes would repack their weights for good.
    """

    Config: ClassVar[type[TuningConfig]] = QLoRAConfig

    def check(self, config: TuningConfig, accelerator: Accelerator) -> None:
        """As for every tuning pass; initial values that change the base don't go with one that is packed."""
        super().check(config, accelerator)
        init = getattr(config, "init_lora_weights", True)
        if str(init).startswith(("pissa", "olora", "loftq")):
            raise ConfigError(f"QLoRA: init_lora_weights {init} changes the base, which is packed; use LoftQ or LoRA")

    def load(self, model: Model, config: TuningConfig, device: Any, dtype: str) -> Any:
        """Load the base in four bits."""
        from transformers import BitsAndBytesConfig

        from drupe.plugins.huggingface.loading import load_model, torch_dtype

        assert isinstance(config, QLoRAConfig)
        return load_model(
            model,
            dtype=dtype,
            device=str(device),
            with_adapter=False,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=config.quant_type,
                bnb_4bit_use_double_quant=config.double_quant,
                bnb_4bit_compute_dtype=torch_dtype(dtype),
            ),
        )

"""Registers the tuning passes."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import PassSpec

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors")
_KINDS = frozenset({"hf", "sliced"})
"""What is taken, and made of its own kind."""
_REQUIRES = ("torch>=2.7", "transformers>=5.10", "peft>=0.15", "safetensors>=0.5")


def _tuning(name: str, summary: str, requires: tuple[str, ...] = (), packages: tuple[str, ...] = ()) -> PassSpec:
    return PassSpec(
        name=name,
        target=f"drupe.plugins.tuning.methods:{name}",
        summary=summary,
        accepts=_KINDS,
        requires=(*_REQUIRES, *requires),
        key_packages=(*_PACKAGES, *packages),
        launcher="torchrun",
        launched_from=2,
    )


@hookimpl
def drupe_passes() -> Sequence[PassSpec]:
    """Contribute the tuning passes."""
    four_bits = ("bitsandbytes>=0.50",)
    return [
        _tuning("LoRA", "Fine-tune with low-rank adapters"),
        _tuning("QLoRA", "Fine-tune low-rank adapters over a base held in four bits", four_bits, ("bitsandbytes",)),
        _tuning("DoRA", "Fine-tune magnitude and direction of the weights apart"),
        _tuning("LoftQ", "Fine-tune from values that make up for four-bit rounding", four_bits, ("bitsandbytes",)),
        _tuning("ElasticLoRA", "Fine-tune one adapter that can be cut to several ranks"),
        PassSpec(
            name="SelectRank",
            target="drupe.plugins.tuning.elastic:SelectRank",
            summary="Cut an elastic adapter down to its first ranks",
            accepts=_KINDS,
            requires=("safetensors>=0.5", "torch>=2.7"),
            key_packages=("safetensors",),
        ),
        _tuning("LoHa", "Fine-tune with Hadamard products of low-rank matrices"),
        _tuning("LoKr", "Fine-tune with Kronecker products"),
        PassSpec(
            name="MergeAdapterWeights",
            target="drupe.plugins.tuning.merge:MergeAdapterWeights",
            summary="Merge an adapter into the base model's weights",
            accepts=_KINDS,
            requires=_REQUIRES,
            key_packages=_PACKAGES,
        ),
    ]

"""What a sampler plugin declares, and what its target is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drupe.core.specs import Spec

if TYPE_CHECKING:
    from drupe.core.study import Space

__all__ = ["SamplerContext", "SamplerSpec"]


@dataclass(frozen=True, kw_only=True)
class SamplerSpec(Spec):
    """A sampler. Its target is called with a `SamplerContext` and returns an `optuna.samplers.BaseSampler`.

    finite: it walks through the space, which must be finite. pruned: trials that were cut short serve it as they are,
    since it learns from them, or from no trial at all. Others are given such trials as finished ones.
    """

    finite: bool = False
    pruned: bool = False


@dataclass(frozen=True)
class SamplerContext:
    """What a sampler is made for. It is made anew for each ask, so it keeps no state between trials: what it knows, it
    reads from the Optuna study.

    seed: of this ask, drawn from the study's seed, the trial's number and the attempt. space: what is searched.
    objectives: how many. options: what `search_strategy.options` says.
    """

    seed: int
    space: Space
    objectives: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

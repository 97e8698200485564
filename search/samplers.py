"""The built-in samplers, the finder of samplers by name, and the choice that "auto" makes."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drupe.core.errors import ConfigError
from drupe.core.registry import Registered, Registry, get_registry
from drupe.core.study import Space, StudySettings
from drupe.search.space import points, size
from drupe.search.specs import SamplerContext

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

__all__ = ["Chosen", "brute_force", "choose", "find_sampler", "gp", "nsga2", "random", "seed_of", "tpe"]

_LISTABLE = 10_000
"""Spaces of up to so many points are small enough to be walked through."""
_LONG_TRIAL = 120.0
_FEW = 8
_AUTO_STARTS = 10


@dataclass(frozen=True)
class Chosen:
    """The sampler that serves an ask."""

    entry: Registered
    registry: Registry

    @property
    def name(self) -> str:
        """The sampler's registered name."""
        return self.entry.spec.name

    @property
    def finite(self) -> bool:
        """Whether it walks through a finite space."""
        return bool(getattr(self.entry.spec, "finite", False))

    def make(self, context: SamplerContext) -> BaseSampler:
        """Make the sampler for one ask. Raises ConfigError where it refuses its options."""
        target = self.registry.resolve(self.entry)
        try:
            return target(context)
        except TypeError as error:
            raise ConfigError(
                f"search_strategy: the sampler {self.name} does not take these options: {error}"
            ) from error
        except ImportError as error:
            raise ConfigError(f"search_strategy: the sampler {self.name} needs the package {error.name}") from error


def find_sampler(name: str, registry: Registry | None = None) -> Chosen:
    """Return the sampler of that name. Raises ConfigError with the nearest valid name."""
    registry = registry or get_registry()
    entry = registry.find("drupe_samplers", name)
    if entry is None:
        names = ["auto", *sorted({e.spec.name for e in registry.of("drupe_samplers")})]
        near = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(names)}"
        raise ConfigError(f"search_strategy.sampler: no sampler named {name!r}; {hint}")
    return Chosen(entry, registry)


def choose(space: Space, settings: StudySettings, objectives: int, costs: Sequence[float]) -> str:
    """Return the name of the sampler that "auto" means.

    costs: what each finished trial took in seconds, stored steps counted as if they had run, so that the choice is the
    same when the run is repeated from the store.
    """
    count = size(space, _LISTABLE)
    if count <= (settings.max_trials or _LISTABLE):
        return "brute-force"
    plain = len(space.dimensions) <= _FEW and not any(d.when for d in space.dimensions)
    if plain and objectives == 1 and len(costs) >= _AUTO_STARTS and importlib.util.find_spec("torch") is not None:
        first = costs[:_AUTO_STARTS]
        if math.fsum(first) / len(first) >= _LONG_TRIAL:
            return "gp"
    return "tpe"


def seed_of(seed: int, number: int, attempt: int = 0) -> int:
    """Return the seed of one ask: a resumed study goes the way that an undisturbed one goes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()[:4], "big")


def tpe(context: SamplerContext) -> BaseSampler:
    """Return Optuna's TPE. Conditional spaces are sampled jointly within each branch."""
    from optuna.samplers import TPESampler

    branches = any(d.when for d in context.space.dimensions)
    options = {"group": branches and context.objectives == 1, **context.options}
    return TPESampler(seed=context.seed, **options)


def gp(context: SamplerContext) -> BaseSampler:
    """Return Optuna's Gaussian-process sampler; its kernels run in torch."""
    import torch  # noqa: F401
    from optuna.samplers import GPSampler

    return GPSampler(seed=context.seed, **{"warn_independent_sampling": False, **context.options})


def nsga2(context: SamplerContext) -> BaseSampler:
    """Return Optuna's NSGA-II."""
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=context.seed, **context.options)


def random(context: SamplerContext) -> BaseSampler:
    """Return Optuna's random sampler."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=context.seed, **context.options)


def brute_force(context: SamplerContext) -> BaseSampler:
    """Return a sampler that walks through a finite space in order. Raises ConfigError for a continuum."""
    from optuna.samplers import BaseSampler as Base

    class InOrder(Base):  # type: ignore[misc]
        """Gives the first point of the space that no trial has yet."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, Any]) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return next_params(context.space, _taken(study, trial.number)).get(param_name)

    if context.options:
        raise TypeError(f"it takes none, and got {', '.join(context.options)}")
    if _continuous(context.space):
        raise ConfigError(
            "search_strategy.sampler: brute-force needs a finite space; continuous: "
            + ", ".join(_continuous(context.space))
            + "; give these a step, or take tpe or random"
        )
    return InOrder()


def next_params(space: Space, taken: set[str]) -> dict[str, Any]:
    """Return the parameters of the first point that is not taken, or of the first where all are."""
    from drupe.search.space import axes_of, point_key

    free = next((p for p in points(space) if point_key(p) not in taken), None)
    point = free if free is not None else next(iter(itertools.islice(points(space), 1)))
    return {
        axis.key: axis.encode(point[axis.dimension.name])
        for axis in axes_of(space)
        if space.active(axis.dimension, point)
    }


def _taken(study: Any, number: int) -> set[str]:
    return {
        t.user_attrs["point"]
        for t in study.get_trials(deepcopy=False)
        if t.number != number and "point" in t.user_attrs
    }


def _continuous(space: Space) -> list[str]:
    from drupe.search.space import values_of

    return [d.name for d in space.dimensions if values_of(d.over) is None]

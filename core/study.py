"""The Study protocol, the search space it works on, and a one-point study.

The driver calls `ask` for a trial until it gives None, runs the trial's point, and calls `tell` once with the outcome;
`ask` may be called again before `tell` where several workers run. After the last trial the driver calls `select` once
per finalist. Where several processes share a study, a trial that `ask` gave to one that died is given again. A study
never runs a pass, and a pass never sees a study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from drupe.core.config import Range
from drupe.core.metrics import Direction, Measurement

if TYPE_CHECKING:
    from drupe.core.specs import StudySpec

__all__ = [
    "Dimension",
    "Goal",
    "MultiFidelity",
    "Objective",
    "OnePointStudy",
    "Outcome",
    "Point",
    "Space",
    "State",
    "Study",
    "StudySettings",
    "Trial",
]

Point = Mapping[str, Any]
"""Dimension name → value. Inactive dimensions are absent."""
State = Literal["complete", "failed", "pruned"]


@dataclass(frozen=True)
class Dimension:
    """One searchable value. name: "pass.param", "pass" (which alternative, an int) or "flow" (which chain, an int).

    when: the dimension is active only where each named dimension has one of the listed values.
    """

    name: str
    over: Range
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Space:
    """What can be searched. Points are never enumerated here; memory grows with trials.

    refuses: whether a point is known to fit nowhere before any work. Such a point is not to be given as a trial. None:
    every point may be.
    """

    dimensions: tuple[Dimension, ...] = ()
    refuses: Callable[[Point], bool] | None = field(default=None, compare=False, repr=False)

    def active(self, dimension: Dimension, point: Point) -> bool:
        """Whether `dimension` is active given the values already in `point`."""
        return all(name in point and point[name] in values for name, values in dimension.when.items())


@dataclass(frozen=True)
class Goal:
    """A limit on a metric ("name" or "name-sub_type").

    kind: threshold | min-improvement | percent-min-improvement | max-degradation | percent-max-degradation; the last
    four are relative to the baseline. confidence None: decided by the point estimate.
    """

    metric: str
    kind: str
    value: float
    direction: Direction
    confidence: float | None = None


@dataclass(frozen=True)
class Objective:
    """A metric to improve; the lowest priority number matters most (Olive's sub_type priority)."""

    metric: str
    direction: Direction
    priority: int = 1


@dataclass(frozen=True)
class MultiFidelity:
    """How accuracy is measured on a growing part of the samples.

    first: samples of the first look; growth: by what factor each further look has more. risk: the chance, over all
    looks at a candidate, to drop one that would have won. keep: "winner" drops what can't be picked any more, "front"
    only what another candidate beats in every objective. indifference: what is unlikely to beat the best so far by more
    than this, in the metric's own unit, is dropped as well; it counts for the first objective, by priority, of those
    that are measured sample by sample.
    """

    first: int = 16
    growth: float = 2.0
    risk: float = 0.1
    keep: Literal["winner", "front"] = "winner"
    indifference: float = 0.0


@dataclass(frozen=True)
class StudySettings:
    """What the workflow's search_strategy says. max_trials None: until the space is exhausted. max_time in seconds.

    finalists: how many candidates may be certified, one after the other, until one holds. They share the risk (Holm).
    multi_fidelity: None: every candidate is measured on every sample.
    """

    sampler: str = "auto"
    max_trials: int | None = None
    max_time: float | None = None
    seed: int = 0
    stop_when_goals_met: bool = False
    workers: int = 1
    finalists: int = 1
    multi_fidelity: MultiFidelity | None = None
    storage: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Trial:
    """What `ask` gives. answered: the outcome of an earlier trial at the same point, when there is one: then nothing is
    run and `tell` is still called with it."""

    number: int
    point: Point
    answered: Outcome | None = None


@dataclass(frozen=True)
class Outcome:
    """What `tell` gets.

    violations: goal metric → normalised slack (≤ 0: met; missing metric: inf); baseline goals are already resolved to
    numbers by the driver. cost: seconds really spent; saved: seconds that the store saved. pruned: the trial was cut
    short, since it could not win any more (`error` says why); what was measured is there, perhaps on a part of the
    samples, and so are the violations of those goals.
    """

    state: State
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    candidate: str | None = None
    cost: float = 0.0
    saved: float = 0.0


class Study(Protocol):
    """Proposes points and picks finalists. Built as `factory(spec, …)` by the registry, then `open`ed."""

    def open(
        self,
        name: str,
        space: Space,
        goals: Sequence[Goal],
        objectives: Sequence[Objective],
        settings: StudySettings,
        folder: Path,
    ) -> None:
        """Create or resume the study `name` whose files live in `folder`. Raises ConfigError (unknown sampler, a
        resumed study whose space differs)."""
        ...

    def check(self, space: Space, objectives: Sequence[Objective], settings: StudySettings) -> None:
        """Look at a search before any work, without a file. Raises ConfigError where it can't be done. A study may lack
        this method."""
        ...

    def ask(self) -> Trial | None:
        """Return the next trial, or None when the budget is spent or the space exhausted. Exact: max_trials trials."""
        ...

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Record a trial's outcome, once, durably."""
        ...

    def waiting(self) -> bool:
        """Whether trials of other, living processes still run: once they end, or their process does, `ask` may give a
        trial again. A study that knows of no other processes may lack this method."""
        ...

    def release(self, trial: Trial) -> None:
        """Give back a trial that could not be run here, since its host failed. This process is not given it again;
        another one may be, or the next run. A study that lacks this method keeps such a trial for the next run."""
        ...

    def finished(self) -> Sequence[tuple[Trial, Outcome]]:
        """Return every trial that was told, earlier runs' included, in order of number."""
        ...

    def select(self, exclude: Sequence[int] = ()) -> int | None:
        """Return the number of the best feasible trial, less `exclude`; None when no trial is feasible."""
        ...

    def close(self) -> None:
        """Release locks and files."""
        ...


class OnePointStudy:
    """A study of exactly one trial: nothing is searched. Serves where no search plugin is installed or needed."""

    def __init__(self, spec: StudySpec | None = None) -> None:
        self.spec = spec
        self._asked = False
        self._told: list[tuple[Trial, Outcome]] = []

    def open(
        self,
        name: str,
        space: Space,
        goals: Sequence[Goal],
        objectives: Sequence[Objective],
        settings: StudySettings,
        folder: Path,
    ) -> None:
        """See Study.open. Raises ValueError when there is something to search."""
        if space.dimensions:
            raise ValueError("a one-point study cannot search")

    def check(self, space: Space, objectives: Sequence[Objective], settings: StudySettings) -> None:
        """See Study.check."""

    def ask(self) -> Trial | None:
        """See Study.ask."""
        if self._asked:
            return None
        self._asked = True
        return Trial(0, {})

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See Study.tell."""
        self._told.append((trial, outcome))

    def waiting(self) -> bool:
        """See Study.waiting."""
        return False

    def release(self, trial: Trial) -> None:
        """See Study.release."""

    def finished(self) -> Sequence[tuple[Trial, Outcome]]:
        """See Study.finished."""
        return list(self._told)

    def select(self, exclude: Sequence[int] = ()) -> int | None:
        """See Study.select."""
        for trial, outcome in self._told:
            feasible = outcome.state == "complete" and all(v <= 0 for v in outcome.violations.values())
            if feasible and trial.number not in exclude:
                return trial.number
        return None

    def close(self) -> None:
        """See Study.close."""

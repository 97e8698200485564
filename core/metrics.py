"""The base class of metrics, and measurements.

A metric takes rows (one vector of statistics per sample) and aggregates them; so one paired bootstrap serves every
metric. A metric has sub-types (accuracy_score, f1; p50, p90): one measuring run gives all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from drupe.core.config import PluginConfig
from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.core.runtimes import Session

if TYPE_CHECKING:
    from drupe.core.specs import MetricSpec

__all__ = ["Direction", "Measurement", "Metric", "MetricConfig", "Rows", "SubType"]

Direction = Literal["lower", "higher"]
Rows = Mapping[str, tuple[float, ...]]
"""Sample id → vector of statistics."""


@dataclass(frozen=True)
class SubType:
    """One value that a metric gives. proportion: rows are (0 or 1,) and the value is their mean, so exact binomial
    methods apply. paired: rows of the same samples can be compared between two models."""

    unit: str
    direction: Direction
    proportion: bool = False
    paired: bool = True


@dataclass(frozen=True)
class Measurement:
    """A value and the evidence behind it. metric reads "name" or "name-sub_type"; interval at `confidence`.

    of: how many samples there are, where only `n` of them were measured; None: all were.
    """

    metric: str
    value: float
    unit: str
    direction: Direction
    n: int
    interval: tuple[float, float] | None = None
    confidence: float = 0.95
    rows: Rows = field(default_factory=dict, compare=False)
    proportion: bool = False
    split: str | None = None
    of: int | None = None

    def to_json(self, *, rows: bool = False) -> dict[str, Any]:
        """Return JSON data, with the per-sample rows where asked for."""
        data: dict[str, Any] = {
            "metric": self.metric,
            "value": self.value,
            "unit": self.unit,
            "direction": self.direction,
            "n": self.n,
            "interval": list(self.interval) if self.interval else None,
            "confidence": self.confidence,
            "proportion": self.proportion,
            "split": self.split,
        }
        if self.of is not None:
            data["of"] = self.of
        if rows:
            data["rows"] = {key: list(value) for key, value in self.rows.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Build a measurement from what `to_json` gave."""
        interval = data.get("interval")
        return cls(
            metric=data["metric"],
            value=data["value"],
            unit=data["unit"],
            direction=data["direction"],
            n=data["n"],
            interval=(interval[0], interval[1]) if interval else None,
            confidence=data.get("confidence", 0.95),
            rows={key: tuple(value) for key, value in data.get("rows", {}).items()},
            proportion=data.get("proportion", False),
            split=data.get("split"),
            of=data.get("of"),
        )


class MetricConfig(PluginConfig):
    """Base of metric configs (Olive's `user_config` and per-metric options)."""


class Metric:
    """Measures a model through a session."""

    Config: ClassVar[type[MetricConfig]] = MetricConfig
    version: ClassVar[int] = 1
    sub_types: ClassVar[Mapping[str, SubType]] = {}
    default_sub_type: ClassVar[str] = ""
    needs_reference: ClassVar[bool] = False
    """Whether the source model is opened beside the model, as context.reference_session."""
    names_values: ClassVar[bool] = False
    """Whether measuring tells which values there are (`value_names`), for an evaluator that lists no sub-types."""

    own_data: ClassVar[bool] = False
    """Whether it brings its samples itself, without a data config; then it honours context.part: what selects a
    candidate must not certify it."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec

    def needs(self, config: Any) -> Sequence[str]:
        """Return the capabilities of which a session must have one, the most wanted first; () for no session.

        The default is the spec's. A metric whose config chooses the way (generate, score, forward) refines it.
        """
        return (self.spec.needs,) if self.spec.needs else ()

    def needs_data(self, config: Any) -> bool:
        """Whether measuring takes the samples of a data config, so that one without is wrong. The default is no."""
        return False

    def sub_type(self, name: str, config: Any) -> SubType:
        """Return what the value `name` is: unit, direction. Raises KeyError. The default looks into `sub_types`.

        Refined where the config decides (a user's own metric, an average that is no proportion).
        """
        return self.sub_types[name]

    def measure(
        self, model: Model, session: Session | None, samples: Sequence[Sample], config: Any, context: JobContext
    ) -> Rows:
        """Return one vector of statistics per sample (for timed metrics: per repetition).

        session is None where the spec needs no capability. Raises EvaluationError.
        """
        raise NotImplementedError

    def value_names(self, rows: Rows, config: Any) -> Sequence[str]:
        """Return the values that the last `measure` of this instance found, where `names_values`."""
        return (self.default_sub_type,)

    def rows_of(self, rows: Rows, sub_type: str, config: Any) -> Rows:
        """Return the rows that the value `sub_type` rests on, in the form that `aggregate` takes: all, as they are.

        Refined where values rest on different samples (tasks of a benchmark). Raises EvaluationError for a value that
        the rows do not tell.
        """
        return rows

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: Any) -> float:
        """Return the value of `sub_type` over rows. Pure; called many times by the bootstrap."""
        raise NotImplementedError

"""One metric of one model on a growing part of its samples. Each piece is a stored step, so what was measured before a
stop, or by another run, is extended and never repeated; all pieces together are stored as the whole measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from drupe.core.executor import StepResult
from drupe.core.measuring import Measurer, full_name
from drupe.core.metrics import Measurement
from drupe.core.model import Model
from drupe.core.statistics.racing import Look
from drupe.core.values import values_of
from drupe.core.workflow.model import MetricEntry

__all__ = ["Growing"]


class Growing:
    """A metric that is being measured.

    whole: the values on all samples, as soon as these are measured. error: why the metric failed. total: how many
    samples there are; None before the first piece. steps: what was done or found for it.
    """

    def __init__(
        self,
        measurer: Measurer,
        entry: MetricEntry,
        model: Model,
        target: str,
        *,
        part: str | None,
        baseline: Model | None,
        reference: Model,
    ) -> None:
        self.entry = entry
        self.whole: Mapping[str, Measurement] | None = None
        self.error: str | None = None
        self.total: int | None = None
        self.steps: list[StepResult] = []
        self._measurer = measurer
        self._metric, self._config = measurer.metric(entry)
        self._model, self._target, self._part = model, target, part
        self._baseline, self._reference = baseline, reference
        self._rows: dict[str, tuple[float, ...]] = {}
        self._positions: dict[str, int] = {}
        self._seen = 0
        self._seconds = 0.0
        if measurer.stored(model, entry, target, part=part, baseline=baseline, reference=reference) is not None:
            self._at_once()

    @property
    def done(self) -> bool:
        """Whether there is no more to measure."""
        return self.whole is not None or self.error is not None

    def grow(self, size: int) -> None:
        """Measure until `size` samples were seen, or all of them."""
        while not self.done and self._seen < min(size, self.total or size):
            piece = (self._seen, min(size, self.total or size))
            found, self.error, steps = self._measurer.measure_piece(
                self._model, self.entry, self._target, piece, part=self._part, reference=self._reference
            )
            self.steps += steps
            if found is None:
                return
            if not found["per_sample"]:
                # Such rows can't be put together: the metric is taken as it is meant, at once.
                self._at_once()
                return
            self.total = int(found["total"])
            self._seen = min(piece[1], self.total)
            self._seconds += found["seconds"]
            for (key, row), position in zip(found["rows"].items(), found["positions"], strict=True):
                self._rows[key] = tuple(row)
                self._positions[key] = position
        if not self.done and self.total is not None and self._seen >= self.total:
            self._put_together()

    def look(self, metric: str) -> Look | None:
        """Return what was seen of one of the metric's values, by its full name; None where nothing can be told yet."""
        sub_type = next((s for s in self.entry.sub_types if full_name(self.entry, s) == metric), None)
        if sub_type is None or self.total is None or len(self._rows) < 2 or metric not in self.partial():
            return None

        def aggregate(rows: Sequence[tuple[float, ...]]) -> float:
            return self._metric.aggregate(rows, sub_type, self._config)

        own = self._metric.rows_of(self._rows, sub_type, self._config)
        return Look(own, self.total, aggregate, proportion=self._metric.sub_type(sub_type, self._config).proportion)

    def partial(self) -> dict[str, Measurement]:
        """Return the values on the samples seen so far, by full name; one that has none on so few is left out."""
        if self.whole is not None:
            return dict(self.whole)
        found = {}
        for sub_type in self.entry.sub_types if self._rows else ():
            try:
                (value,) = self._values([sub_type]).values()
            except Exception:  # a metric may be undefined on few samples in any way of its own
                continue
            if math.isfinite(value["value"]):
                name = full_name(self.entry, sub_type)
                own = self._metric.rows_of(self._rows, sub_type, self._config)
                found[name] = Measurement.from_json(
                    {**value, "metric": name, "rows": own, "split": self._part, "of": self.total}
                )
        return found

    def _values(self, sub_types: Sequence[str]) -> dict[str, dict[str, Any]]:
        ordered = {key: self._rows[key] for key in sorted(self._rows, key=lambda key: self._positions[key])}
        seed = self._measurer.workflow.seed
        values: dict[str, dict[str, Any]] = {}
        for sub_type in sub_types:
            vectors = list(self._metric.rows_of(ordered, sub_type, self._config).values())
            values |= values_of(self._metric, self._config, self.entry.name, [sub_type], vectors, seed)
        return values

    def _put_together(self) -> None:
        try:
            values = self._values(self.entry.sub_types)
        except Exception as error:
            self.error = str(error)
            return
        ordered = sorted(self._rows, key=lambda key: self._positions[key])
        measured = {
            "rows": {key: list(self._rows[key]) for key in ordered},
            "values": values,
            "seconds": self._seconds,
        }
        self.whole = self._measurer.keep_whole(
            self._model,
            self.entry,
            self._target,
            measured,
            self.steps[-1],
            part=self._part,
            reference=self._reference,
        )

    def _at_once(self) -> None:
        found, errors, steps = self._measurer.measure(
            self._model,
            self._measurer.workflow.evaluators[self._measurer.workflow.evaluator or ""],
            self._target,
            part=self._part,
            baseline=self._baseline,
            reference=self._reference,
            metrics=[self.entry.name],
        )
        self.steps += steps
        self.whole, self.error = (found, None) if found else (None, errors.get(self.entry.name, "it gave no value"))

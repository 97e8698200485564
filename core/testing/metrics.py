"""What every metric must do, as a class of tests that an author subclasses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.core.specs import CAPABILITIES, MetricSpec
from drupe.core.testing.base import ConfigContract
from drupe.core.testing.contexts import make_context

__all__ = ["MetricContract"]


class MetricContract(ConfigContract):
    """Subclass it as `TestMyMetric(MetricContract)`, set `name`, and override `session` and `samples`."""

    hook: ClassVar[str] = "drupe_metrics"

    # Fixtures to override

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        """The model that is measured; one file of 1000 bytes unless overridden."""
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(bytes(1000))
        return Model.from_dir("onnx", folder)

    @pytest.fixture
    def session(self, registered: Any) -> Session | None:
        """The model opened, with a capability that the metric needs. To be overridden where it needs one."""
        if cast(MetricSpec, registered.spec).needs is not None:
            pytest.fail(f"override the fixture `session` of {type(self).__name__}: the metric needs one")
        return None

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        """What it is measured on."""
        return ()

    @pytest.fixture
    def rows(
        self,
        subject: Metric,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: Any,
        tmp_path: Path,
    ) -> Rows:
        """What measuring gives."""
        return subject.measure(model, session, samples, config, make_context(tmp_path / "measuring"))

    @pytest.fixture
    def sub_type_names(self, subject: Metric) -> Sequence[str]:
        """The values that are looked at; a metric whose config decides them overrides it."""
        return tuple(subject.sub_types)

    @pytest.fixture
    def told(self, subject: Metric, rows: Rows, config: Any, sub_type_names: Sequence[str]) -> Sequence[str]:
        """The values that these rows tell; others (a speed-up without a baseline) raise EvaluationError."""
        names = []
        for name in sub_type_names:
            with contextlib.suppress(EvaluationError):
                subject.aggregate(list(subject.rows_of(rows, name, config).values()), name, config)
                names.append(name)
        assert names, "none of its values can be told from the rows"
        return names

    # Cases

    def test_it_is_a_metric(self, subject: Any, config: Any, sub_type_names: Sequence[str]) -> None:
        """It derives from Metric, and says of every value which direction is better."""
        assert isinstance(subject, Metric)
        assert isinstance(subject.version, int)
        assert sub_type_names, "it has no sub_types"
        for name in sub_type_names:
            assert subject.sub_type(name, config).direction in ("lower", "higher")
        assert not subject.default_sub_type or subject.default_sub_type in sub_type_names

    def test_it_needs_what_sessions_can(self, subject: Metric, config: Any) -> None:
        """Capabilities, the most wanted first; the spec's among them."""
        needs = list(subject.needs(config))
        assert set(needs) <= set(CAPABILITIES)

    def test_rows_belong_to_samples(self, rows: Rows, samples: Sequence[Sample], subject: Metric) -> None:
        """One vector of numbers per sample, by its id; a timed metric has one per repetition."""
        assert rows, "no rows"
        for key, row in rows.items():
            assert isinstance(key, str)
            assert isinstance(row, tuple)
            assert all(isinstance(value, (int, float)) for value in row), f"row {key} holds {row!r}"
        if samples and not subject.spec.timed:
            assert set(rows) <= {sample.id for sample in samples}

    def test_values_are_finite_and_pure(self, subject: Metric, rows: Rows, config: Any, told: Sequence[str]) -> None:
        """`aggregate` changes nothing and gives the same number each time: a bootstrap calls it thousands of times."""
        for name in told:
            own = subject.rows_of(rows, name, config)
            given = list(own.values())
            first = subject.aggregate(given, name, config)
            assert math.isfinite(first), f"{name} is {first}"
            assert subject.aggregate(given, name, config) == first
            assert given == list(own.values())

    def test_order_does_not_matter(self, subject: Metric, rows: Rows, config: Any, told: Sequence[str]) -> None:
        """Rows are a set; resampling shuffles them."""
        for name in told:
            given = list(subject.rows_of(rows, name, config).values())
            there, back = (subject.aggregate(order, name, config) for order in (given, given[::-1]))
            assert there == pytest.approx(back, rel=1e-9)

    def test_proportions_are_means_of_zeros_and_ones(
        self, subject: Metric, rows: Rows, config: Any, sub_type_names: Sequence[str]
    ) -> None:
        """Where a sub_type says `proportion`, exact binomial methods rely on it."""
        proportions = [name for name in sub_type_names if subject.sub_type(name, config).proportion]
        if not proportions:
            pytest.skip("none of its values is a proportion")
        for name in proportions:
            own = list(subject.rows_of(rows, name, config).values())
            firsts = [row[0] for row in own]
            assert set(firsts) <= {0, 1}
            assert subject.aggregate(own, name, config) == pytest.approx(sum(firsts) / len(firsts))

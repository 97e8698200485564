from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.core.config import Choice, FloatRange, IntRange, Ordered
from drupe.core.study import Dimension, Outcome, Space, StudySettings
from drupe.search.space import Axis, axes_of, definition, fits, point_key, points, size, values_of
from drupe.search.study import OptunaStudy

LISTS = st.lists(st.one_of(st.integers(-5, 5), st.text("ab", max_size=2)), min_size=1, max_size=3, unique_by=repr)
RANGES = st.one_of(
    LISTS.map(lambda v: Choice(*v)),
    LISTS.map(lambda v: Ordered(*v)),
    st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 2)).map(
        lambda t: IntRange(t[0], t[0] + t[1], step=t[2])
    ),
    st.tuples(st.sampled_from([0.0, 0.1, 0.25]), st.floats(0, 1)).map(
        lambda t: FloatRange(t[0], t[0] + t[1], step=0.1)
    ),
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Draw a finite space whose later dimensions may depend on earlier ones."""
    dimensions: list[Dimension] = []
    for index in range(draw(st.integers(1, 4))):
        when: dict[str, Any] = {}
        if dimensions and draw(st.booleans()):
            parent = draw(st.sampled_from(dimensions))
            values = list(values_of(parent.over) or ())
            when = {parent.name: draw(st.lists(st.sampled_from(values), min_size=1, max_size=2))}
        dimensions.append(Dimension(f"p.d{index}", draw(RANGES), when))
    return Space(tuple(dimensions))


@given(spaces())
def test_points_are_distinct_active_and_counted(space: Space) -> None:
    found = list(points(space))
    assert len({point_key(p) for p in found}) == len(found) == size(space, 10_000)
    for point in found:
        for dimension in space.dimensions:
            assert (dimension.name in point) == space.active(dimension, point)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(space=spaces(), sampler=st.sampled_from(["tpe", "random", "brute-force", "nsga2"]))
def test_every_sampler_exhausts_every_finite_space(
    tmp_path_factory: pytest.TempPathFactory, space: Space, sampler: str
) -> None:
    study = OptunaStudy()
    study.open("s", space, (), (), StudySettings(sampler=sampler), Path(tmp_path_factory.mktemp("study")))
    asked = []
    while trial := study.ask():
        asked.append(point_key(trial.point))
        study.tell(trial, Outcome("complete"))
    study.close()
    assert sorted(asked) == sorted(point_key(p) for p in points(space))


@pytest.mark.filterwarnings("error")
@given(RANGES)
def test_values_survive_the_way_through_optuna(over: Any) -> None:
    axis = Axis(Dimension("p.x", over), "p.x")
    distribution = axis.distribution()
    for value in values_of(over) or ():
        stored = distribution.to_external_repr(distribution.to_internal_repr(axis.encode(value)))
        assert axis.decode(stored) == value
        assert fits(over, value)


def test_size_of_a_huge_space_is_not_counted() -> None:
    huge = Space(tuple(Dimension(f"p.d{i}", IntRange(1, 10**6)) for i in range(2)))
    assert size(huge, 10_000) == math.inf
    assert next(iter(points(huge))) == {"p.d0": 1, "p.d1": 1}


def test_continuum_has_no_list() -> None:
    space = Space((Dimension("p.lr", FloatRange(0.0, 1.0)),))
    assert size(space, 10) == math.inf
    with pytest.raises(ValueError, match=r"p\.lr is continuous"):
        points(space)


def test_conditions_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="depend on each other"):
        axes_of(Space((Dimension("a", Choice(1), {"b": [1]}), Dimension("b", Choice(1), {"a": [1]}))))
    with pytest.raises(ValueError, match="does not exist"):
        axes_of(Space((Dimension("a", Choice(1), {"gone": [1]}),)))


def test_parents_come_before_what_depends_on_them() -> None:
    space = Space((Dimension("b", Choice(1, 2), {"a": [1]}), Dimension("a", Choice(0, 1))))
    assert [axis.key for axis in axes_of(space)] == ["a", "b"]
    assert list(points(space)) == [{"a": 0}, {"a": 1, "b": 1}, {"a": 1, "b": 2}]


def test_definition_is_json() -> None:
    import json

    space = Space((Dimension("a", Choice(True, [1])), Dimension("b", FloatRange(1e-5, 1.0, log=True), {"a": [True]})))
    assert json.loads(json.dumps(definition(space))) == definition(space)

"""Rehearsing: every value is tried, nothing of it stays."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from drupe.core.config import Choice, IntRange, Ordered
from drupe.core.rehearsal import covering_points
from drupe.core.study import Dimension, Space
from tests.support.workflows import drupe, runs, toy_document, write_workflow


@given(st.lists(st.integers(1, 5), max_size=5))
def test_independent_dimensions_are_covered_by_as_many_points_as_the_longest_has_values(lengths: list[int]) -> None:
    space = Space(tuple(Dimension(f"p.d{i}", Choice(*range(n))) for i, n in enumerate(lengths)))
    points = covering_points(space)
    for i, n in enumerate(lengths):
        assert {point[f"p.d{i}"] for point in points} == set(range(n))
    assert len(points) <= max([*lengths, 1]) * 2


def test_the_ends_of_ranges_and_conditional_parameters_are_tried() -> None:
    space = Space(
        (
            Dimension("tune.r", IntRange(4, 64)),
            Dimension("quantize", Ordered(0, 1)),
            Dimension("quantize.block", Ordered(32, 64), {"quantize": [1]}),
        )
    )
    points = covering_points(space)
    assert {point["tune.r"] for point in points} == {4, 64}
    assert {point["quantize"] for point in points} == {0, 1}
    assert any("quantize.block" in point for point in points)
    assert all("quantize.block" not in point for point in points if point["quantize"] == 0)


def test_a_rehearsal_finds_a_fault_in_any_value_and_leaves_nothing(tmp_path: Path) -> None:
    passes = {"append": {"type": "Append"}, "risky": {"type": "Raises", "fail": {"search": [False, True]}}}
    document = toy_document(tmp_path, passes=passes, search_strategy=True)
    done = drupe("rehearse", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL here: risky.fail=True" in done.stdout
    assert "the toy is broken" in done.stdout
    assert "ok   here: risky.fail=False" in done.stdout
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_a_rehearsal_of_a_sound_workflow_measures_on_few_samples(tmp_path: Path) -> None:
    done = drupe("rehearse", write_workflow(tmp_path, toy_document(tmp_path)), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "measure accuracy ab!!! 4" in runs(tmp_path)


def test_a_hugging_face_model_is_rehearsed_with_two_layers(tiny_llama_dir: Path, tmp_path: Path) -> None:
    document = {
        "input_model": {"type": "HfModel", "model_path": str(tiny_llama_dir)},
        "systems": {"here": {"type": "LocalSystem", "in_process": True}},
        "passes": {"merge": {"type": "Raises", "fail": False}},
        "host": "here",
        "target": "here",
    }
    done = drupe("rehearse", write_workflow(tmp_path, document), folder=tmp_path)
    # The chain does not fit (the toy pass takes texts): said before anything is loaded.
    assert done.returncode == 2
    assert "takes text models" in done.stderr

"""Discrepancy from a reference: errors, cosine, flips, and what padding must not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model

SAMPLES = [Sample("a", {"x": np.array([3.0, 4.0])}), Sample("b", {"x": np.array([1.0, 0.0])})]


def run(ours: Any, theirs: Any, samples: list[Sample], folder: Path, **config: Any) -> dict[str, float]:
    made = metric("discrepancy")
    checked = configured(made, **config)
    base = ForwardSession(theirs) if theirs else None
    job = context(folder, reference_session=base, allow=frozenset({"user-scripts"}))
    rows = made.measure(model(folder), ForwardSession(ours), samples, checked, job)
    return {name: made.aggregate(list(rows.values()), name, checked) for name in made.sub_types}


def test_a_model_equals_itself(tmp_path: Path) -> None:
    values = run(lambda b: {"y": b["x"]}, lambda b: {"y": b["x"]}, SAMPLES, tmp_path)
    assert values == pytest.approx({"max_error": 0.0, "mean_error": 0.0, "cosine": 1.0, "flips": 0.0})


def test_values_by_hand(tmp_path: Path) -> None:
    # a: (4, 3) against (3, 4); b: (0, 1) against (1, 0).
    values = run(lambda b: {"y": b["x"][:, ::-1]}, lambda b: {"y": b["x"]}, SAMPLES, tmp_path)
    assert values == pytest.approx({"max_error": 1.0, "mean_error": 1.0, "cosine": (24 / 25 + 0) / 2, "flips": 1.0})


def test_padding_does_not_count(tmp_path: Path) -> None:
    samples = [
        Sample("long", {"input_ids": np.array([1, 2, 3]), "attention_mask": np.array([1, 1, 1])}),
        Sample("short", {"input_ids": np.array([1]), "attention_mask": np.array([1])}),
    ]

    def hidden(offset: float) -> Any:
        # Off only where the input is padding.
        return lambda b: {"h": np.repeat((b["input_ids"] + offset * (b["input_ids"] == 0))[..., None], 2, -1)}

    values = run(hidden(100.0), hidden(0.0), samples, tmp_path, batch_size=2)
    assert values["max_error"] == 0.0


def test_what_is_one_number_for_all_samples_is_compared_as_well(tmp_path: Path) -> None:
    def scaled(scale: float) -> Any:
        return lambda b: {"scale": np.float32(scale), "y": b["x"], "scales": np.float32([scale])}

    values = run(scaled(2.0), scaled(2.5), SAMPLES, tmp_path, batch_size=2)
    assert values["max_error"] == 0.5
    assert run(scaled(2.0), scaled(2.0), SAMPLES, tmp_path)["max_error"] == 0.0


def test_a_stored_reference_is_preferred(tmp_path: Path) -> None:
    sample = Sample("a", {"x": np.array([3.0, 4.0])}, extras={"reference": {"y": np.array([3.0, 6.0])}})
    values = run(lambda b: {"y": b["x"]}, None, [sample], tmp_path)
    assert values["max_error"] == 2.0


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (lambda b: {"z": b["x"]}, "this one has z, the reference has y"),
        (lambda b: {"y": b["x"][:, :1]}, r"shape \(1,\); the reference has \(2,\)"),
    ],
)
def test_outputs_that_cannot_be_compared_are_named(ours: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=message):
        run(ours, lambda b: {"y": b["x"]}, SAMPLES, tmp_path)


def test_without_a_reference_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="source model"):
        run(lambda b: {"y": b["x"]}, None, SAMPLES, tmp_path)


def test_without_data_made_up_inputs_serve(tmp_path: Path) -> None:
    made = metric("discrepancy")
    config = configured(made, made_up_num=3, batch_size=2)
    shapes: Any = {"x": (("batch", 4), "float32")}
    session = ForwardSession(lambda b: {"y": b["x"]}, shapes)
    other = ForwardSession(lambda b: {"y": b["x"] + 0.5}, shapes)
    rows = made.measure(model(tmp_path), session, (), config, context(tmp_path, reference_session=other))
    assert len(rows) == 6
    assert made.aggregate(list(rows.values()), "mean_error", config) == pytest.approx(0.5)
    assert len({float(batch["x"].sum()) for batch in session.batches}) == 3


def test_what_a_script_makes_of_both_models_outputs_is_compared(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def summed(y, factor):\n    return factor * y.sum(-1)\n")
    options = {"user_script": "mine.py", "post_processing_func": "summed"}
    kwargs = {"post_processing_func": {"factor": 10}}
    # (4, 3) and (3, 4) have one sum.
    swapped, same = lambda b: {"y": b["x"][:, ::-1]}, lambda b: {"y": b["x"]}
    assert run(swapped, same, SAMPLES, tmp_path, **options, func_kwargs=kwargs)["max_error"] == 0.0
    longer = lambda b: {"y": b["x"] + 1.0}  # noqa: E731
    assert run(longer, same, SAMPLES, tmp_path, **options, func_kwargs=kwargs)["max_error"] == 20.0

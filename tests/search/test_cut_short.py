"""Trials that were cut short: what samplers are given of them, and that they never win."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drupe.core.metrics import Measurement
from drupe.core.study import Outcome
from drupe.search.explain import binding_goal, relaxations, why_lost
from tests.search.synthetic import GOALS, OBJECTIVES, measured, open_study, run


def cut(accuracy: float, latency: float, slack: float) -> Outcome:
    """A trial that was seen on 16 of 100 samples."""
    seen = Measurement("accuracy-exact", accuracy, "", "higher", 16, of=100)
    found = {"accuracy-exact": seen, "latency-p50": measured("latency-p50", latency, "lower")}
    return Outcome("pruned", found, {"latency-p50 threshold": slack}, error="it was hopeless", candidate="c")


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_one_that_looks_best_is_never_selected(tmp_path: Path, sampler: str) -> None:
    study = open_study(tmp_path, sampler=sampler, max_trials=4)
    trial = study.ask()
    assert trial is not None
    study.tell(trial, cut(1.0, 1.0, -0.9))
    run(study)
    assert len(study.finished()) == 4
    assert study.select() != trial.number
    assert trial.number not in [study.select(exclude=[n]) for n in range(1, 4)]
    # Read again from the file, it is still known for what it is.
    study.close()
    again = open_study(tmp_path, sampler=sampler, max_trials=4)
    outcome = again.finished()[0][1]
    assert outcome.state == "pruned"
    assert outcome.measurements["accuracy-exact"].of == 100
    assert again.select() != trial.number


@pytest.mark.parametrize(("sampler", "state"), [("tpe", "PRUNED"), ("auto", "PRUNED"), ("nsga2", "COMPLETE")])
def test_a_sampler_that_reads_finished_trials_only_is_given_what_was_seen(
    tmp_path: Path, sampler: str, state: str
) -> None:
    import optuna

    study = open_study(tmp_path, sampler=sampler, max_trials=4)
    assert study.learns_from_pruned() == (state == "PRUNED")
    trial = study.ask()
    assert trial is not None
    study.tell(trial, cut(0.5, 30.0, 0.5))
    name = study.name
    loaded = optuna.load_study(study_name=name, storage=study._home.storage)
    assert loaded.trials[0].state.name == state
    assert loaded.trials[0].constraints == {"latency-p50 threshold": 0.5}


def test_what_was_not_measured_before_the_cut_is_not_held_against_a_goal(tmp_path: Path) -> None:
    study = open_study(tmp_path, sampler="random", max_trials=3)
    outcomes = [cut(0.5, 30.0, 0.5), replace(cut(0.9, 1.0, 0.0), violations={})]
    for outcome in outcomes:
        trial = study.ask()
        assert trial is not None
        study.tell(trial, outcome)
    finished = study.finished()
    (nearest,) = relaxations(finished, GOALS)
    assert nearest.number == 0
    assert nearest.text().endswith("latency-p50 threshold 20 → 30, as far as it was measured")
    assert binding_goal(finished, GOALS, OBJECTIVES) == GOALS[0]
    assert why_lost(finished, GOALS, OBJECTIVES, None)[1] == "cut short: it was hopeless"

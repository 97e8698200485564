from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from drupe.core.config import Choice, FloatRange, IntRange, Ordered
from drupe.core.errors import ConfigError
from drupe.core.study import Dimension, Goal, Objective, Outcome, Space, StudySettings
from drupe.search.study import OptunaStudy
from tests.search.synthetic import GOALS, OBJECTIVES, SPACE, listing, measured, new_study, open_study, outcome_of, run

SMALL = Space((Dimension("lora.r", Ordered(4, 16)), Dimension("build.precision", Choice("int4", "int8", "fp32"))))


def opened(folder: Path, space: Space = SMALL, goals: tuple[Goal, ...] = (), **settings: object) -> OptunaStudy:
    study = new_study()
    study.open("cpu", space, goals, (), StudySettings(**settings), folder)  # type: ignore[arg-type]
    return study


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random", "nsga2"])
def test_asks_for_exactly_the_budget(tmp_path: Path, sampler: str) -> None:
    study = open_study(tmp_path, sampler=sampler, max_trials=13)
    assert run(study) == 13
    assert study.ask() is None
    assert [number for number, _ in listing(study)] == list(range(13))


@pytest.mark.parametrize("sampler", ["auto", "brute-force", "grid", "sequential", "tpe", "random"])
def test_small_space_is_exhausted_without_repeating_a_point(tmp_path: Path, sampler: str) -> None:
    study = opened(tmp_path, sampler=sampler, max_trials=50)
    points = []
    while trial := study.ask():
        assert trial.answered is None
        points.append(tuple(trial.point.values()))
        study.tell(trial, Outcome("complete"))
    assert sorted(points) == sorted((r, p) for r in (4, 16) for p in ("int4", "int8", "fp32"))


def test_brute_force_keeps_trials_with_the_same_first_steps_together(tmp_path: Path) -> None:
    study = opened(tmp_path, sampler="brute-force")
    ranks = []
    while trial := study.ask():
        ranks.append(trial.point["lora.r"])
        study.tell(trial, Outcome("complete"))
    assert ranks == [4, 4, 4, 16, 16, 16]


def test_inactive_dimensions_are_absent(tmp_path: Path) -> None:
    study = open_study(tmp_path, sampler="random", max_trials=20)
    run(study)
    points = [point for _, point in listing(study)]
    assert {point["quantize"] for point in points} == {0, 1}
    assert all(("quantize.bits" in point) == (point["quantize"] == 1) for point in points)


def test_a_parameter_searched_over_two_ranges_in_two_alternatives(tmp_path: Path) -> None:
    space = Space(
        (
            Dimension("quantize", Choice(0, 1)),
            Dimension("quantize.group", Choice(32, 64), {"quantize": [0]}),
            Dimension("quantize.group", Choice(128, 256, 512), {"quantize": [1]}),
        )
    )
    study = opened(tmp_path, space, sampler="tpe")
    found = set()
    while trial := study.ask():
        found.add((trial.point["quantize"], trial.point["quantize.group"]))
        study.tell(trial, Outcome("complete"))
    assert found == {(0, 32), (0, 64), (1, 128), (1, 256), (1, 512)}


def test_values_come_back_as_they_were_written(tmp_path: Path) -> None:
    values = (["q", "v"], {"all": True}, None, 1, True, "1")
    study = opened(tmp_path, Space((Dimension("lora.target_modules", Choice(*values)),)))
    found = []
    while trial := study.ask():
        found.append(trial.point["lora.target_modules"])
        study.tell(trial, Outcome("complete"))
    assert [repr(v) for v in found] == [repr(v) for v in values]


def test_ten_to_the_twelfth_points_cost_no_memory(tmp_path: Path) -> None:
    space = Space(tuple(Dimension(f"p.d{i}", IntRange(1, 1000)) for i in range(4)))
    study = opened(tmp_path, space, sampler="random", max_trials=3)
    study.ask()
    tracemalloc.start()
    assert study.ask() is not None
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_point_known_from_an_earlier_trial_is_answered_from_it(tmp_path: Path) -> None:
    space = Space(tuple(Dimension(f"p.d{i}", IntRange(1, 1000)) for i in range(4)))
    # A sampler that insists on one point of an endless space: its repetitions are answered and cost nothing.
    from drupe.core.registry import Plugin, get_registry
    from drupe.search.specs import SamplerSpec

    registry = get_registry()
    before = list(registry.entries)
    registry.add(
        "drupe_samplers",
        [SamplerSpec(name="test-stuck", target="tests.search.test_study:stuck")],
        Plugin("test", "tests", "drupe", "0"),
    )
    try:
        study = opened(tmp_path, space, sampler="test-stuck", max_trials=3)
        first = study.ask()
        assert first is not None and first.answered is None
        study.tell(first, Outcome("complete", {"a-b": measured("a-b", 0.5)}))
        second = study.ask()
        assert second is not None and second.answered is not None
        assert second.point == first.point
        assert second.answered.measurements["a-b"].value == 0.5
    finally:
        registry.entries[:] = before


def stuck(context: object) -> object:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=0)


def test_resumed_study_goes_the_way_of_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = open_study(tmp_path / "one", sampler="tpe", max_trials=24)
    run(undisturbed)
    for part in range(6):
        study = open_study(tmp_path / "two", sampler="tpe", max_trials=4 * (part + 1))
        assert run(study) == 4
        study.close()
    resumed = open_study(tmp_path / "two", sampler="tpe", max_trials=24)
    assert listing(resumed) == listing(undisturbed)
    assert resumed.select() == undisturbed.select()


def test_finished_trials_read_back_whole(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = study.ask()
    assert trial is not None
    told = Outcome(
        "failed", {"a-b": measured("a-b", 0.25)}, {"a-b threshold": float("inf")}, "no space left", "c1", 3.5, 1.25
    )
    study.tell(trial, told)
    study.close()
    assert open_study(tmp_path).finished() == [(trial, told)]


def test_trial_of_a_closed_study_is_given_again_under_its_number(tmp_path: Path) -> None:
    study = open_study(tmp_path, max_trials=5)
    asked = [study.ask() for _ in range(3)]
    study.close()
    again = open_study(tmp_path, max_trials=5)
    assert [again.ask() for _ in range(3)] == asked
    third, fourth = again.ask(), again.ask()
    assert third is not None and third.number == 3
    assert fourth is not None and fourth.number == 4
    assert again.ask() is None


def test_two_open_studies_share_the_budget(tmp_path: Path) -> None:
    one, two = open_study(tmp_path, max_trials=5), open_study(tmp_path, max_trials=5)
    numbers = []
    for study in (one, two, one, two, one):
        trial = study.ask()
        assert trial is not None
        numbers.append(trial.number)
    assert numbers == [0, 1, 2, 3, 4]
    assert one.ask() is None and two.ask() is None
    assert one.waiting()


def test_outcome_of_a_trial_that_another_worker_finished_is_passed_over(tmp_path: Path) -> None:
    slow = open_study(tmp_path, max_trials=2)
    trial = slow.ask()
    assert trial is not None
    assert slow._presence is not None
    slow._presence.close()  # as if this worker had been suspended for long: its sign of life is gone
    quick = open_study(tmp_path, max_trials=2)
    assert quick.ask() == trial
    quick.tell(trial, outcome_of(trial.point))
    slow.tell(trial, Outcome("failed", error="too late"))
    assert [outcome.state for _, outcome in slow.finished()] == ["complete"]


def test_telling_twice_is_an_error(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = study.ask()
    assert trial is not None
    study.tell(trial, outcome_of(trial.point))
    with pytest.raises(ValueError, match="trial 0 was told before"):
        study.tell(trial, outcome_of(trial.point))


def test_resuming_with_another_space_is_an_error_that_says_what_differs(tmp_path: Path) -> None:
    opened(tmp_path).close()
    wider = Space((Dimension("lora.r", Ordered(4, 16, 64)), Dimension("build.bits", Choice(4, 8))))
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, wider)
    text = str(caught.value)
    assert "lora.r was [4, 16] and is [4, 16, 64]" in text
    assert "build.bits is new" in text
    assert "build.precision is not searched any more" in text


def test_unknown_sampler_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sampler named 'ranodm'; did you mean 'random'\?"):
        open_study(tmp_path, sampler="ranodm")


def test_a_search_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set max_trials or max_time"):
        opened(tmp_path, Space((Dimension("p.lr", FloatRange(0.0, 1.0)),)))


def test_brute_force_of_a_continuum_is_refused(tmp_path: Path) -> None:
    study = open_study(tmp_path, sampler="brute-force")
    with pytest.raises(ConfigError, match=r"continuous: lora\.lr"):
        study.ask()


def test_brute_force_takes_no_options(tmp_path: Path) -> None:
    study = opened(tmp_path, sampler="brute-force", options={"shuffle": True})
    with pytest.raises(ConfigError, match="brute-force does not take these options: it takes none, and got shuffle"):
        study.ask()


def test_unknown_option_of_a_sampler_is_refused(tmp_path: Path) -> None:
    study = open_study(tmp_path, sampler="tpe", options={"n_startups": 3})
    with pytest.raises(ConfigError, match="n_startups"):
        study.ask()


def test_stops_when_the_goals_are_met(tmp_path: Path) -> None:
    study = opened(tmp_path, goals=GOALS, stop_when_goals_met=True)
    violations = iter([0.5, 0.1, -0.2, -0.3])
    count = 0
    while trial := study.ask():
        study.tell(trial, Outcome("complete", {}, {"latency-p50 threshold": next(violations)}))
        count += 1
    assert count == 3


def test_max_time_counts_what_earlier_runs_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("drupe.search.study.time.monotonic", lambda: clock[0])
    for expected in (2, 1):
        study = open_study(tmp_path, max_trials=None, max_time=25.0 if expected == 1 else 20.0)
        count = 0
        while trial := study.ask():
            clock[0] += 10.0
            study.tell(trial, outcome_of(trial.point))
            count += 1
        study.close()
        assert count == expected


def test_infeasible_failed_and_unmeasured_trials_are_never_selected(tmp_path: Path) -> None:
    study = new_study()
    study.open("cpu", SMALL, GOALS, [Objective("accuracy-exact", "higher")], StudySettings(), tmp_path)
    good = {"accuracy-exact": measured("accuracy-exact", 0.7)}
    outcomes = [
        Outcome("complete", {"accuracy-exact": measured("accuracy-exact", 0.99)}, {"latency-p50 threshold": 0.1}),
        Outcome("failed", {"accuracy-exact": measured("accuracy-exact", 0.98)}, error="pass failed"),
        Outcome("complete", {}, {"latency-p50 threshold": -0.1}),
        Outcome("complete", good, {"latency-p50 threshold": float("inf")}),
        Outcome("pruned", good, {"latency-p50 threshold": 0.3}),
        Outcome("complete", good, {"latency-p50 threshold": 0.0}),
    ]
    for outcome in outcomes:
        trial = study.ask()
        assert trial is not None
        study.tell(trial, outcome)
    assert study.select() == 5
    assert study.select(exclude=[5]) is None


def test_priority_decides_and_equals_go_by_the_next_objective(tmp_path: Path) -> None:
    study = new_study()
    study.open("cpu", SMALL, (), OBJECTIVES, StudySettings(), tmp_path)
    for accuracy, latency in ((0.90, 5.0), (0.92, 9.0), (0.92, 7.0), (0.91, 1.0), (0.92, 7.0), (0.1, 0.1)):
        trial = study.ask()
        assert trial is not None
        values = {
            "accuracy-exact": measured("accuracy-exact", accuracy),
            "latency-p50": measured("x", latency, "lower"),
        }
        study.tell(trial, Outcome("complete", values))
    assert study.select() == 2
    assert study.select(exclude=[2, 4]) == 1


def test_first_points_come_first_and_foreign_ones_are_passed_over(tmp_path: Path) -> None:
    study = opened(tmp_path, sampler="tpe")
    wanted = [{"lora.r": 16, "build.precision": "fp32"}, {"lora.r": 4, "build.precision": "int8"}]
    study.warm_start([wanted[0], {"lora.r": 5, "build.precision": "int8"}, wanted[1]])
    assert [study.ask().point for _ in range(2)] == wanted  # type: ignore[union-attr]


def test_the_sampler_sees_the_constraints(tmp_path: Path) -> None:
    def feasible_share(sampler: str) -> float:
        hits = 0
        for seed in range(3):
            study = open_study(tmp_path / f"{sampler}-{seed}", sampler=sampler, seed=seed, max_trials=30)
            run(study)
            hits += sum(all(v <= 0 for v in outcome.violations.values()) for _, outcome in study.finished()[15:])
            study.close()
        return hits / 45

    assert feasible_share("tpe") > feasible_share("random") + 0.2


def test_optuna_reads_the_study(tmp_path: Path) -> None:
    import optuna

    study = open_study(tmp_path, max_trials=6, sampler="random")
    run(study)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    loaded = optuna.load_study(
        study_name="cpu", storage=JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    )
    assert len(loaded.trials) == 6
    assert {t.number for t in loaded.best_trials} <= {
        trial.number for trial, o in study.finished() if o.violations["latency-p50 threshold"] <= 0
    }
    assert SPACE.dimensions[1].name in loaded.trials[0].params


def test_the_next_target_starts_from_the_best_points_of_the_last(tmp_path: Path) -> None:
    study = opened(tmp_path / "one", goals=GOALS)
    for latency in (30.0, 12.0, 22.0, 18.0, 60.0, 21.0):
        trial = study.ask()
        assert trial is not None
        study.tell(trial, Outcome("complete", {}, {"latency-p50 threshold": (latency - 20) / 20}))
    order = [listing(study)[n][1] for n in (1, 3, 5, 2)]
    assert study.leading(4) == order
    following = opened(tmp_path / "two", goals=GOALS, sampler="tpe")
    following.warm_start(study.leading(2))
    assert [following.ask().point for _ in range(2)] == order[:2]  # type: ignore[union-attr]


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random", "brute-force"])
def test_what_fits_nowhere_is_no_trial_and_the_search_ends(tmp_path: Path, sampler: str) -> None:
    space = replace(SMALL, refuses=lambda point: point["lora.r"] == 4 and point["build.precision"] != "int8")
    study = opened(tmp_path, space, sampler=sampler, max_trials=20)
    found = []
    while trial := study.ask():
        found.append((trial.number, *trial.point.values()))
        study.tell(trial, Outcome("complete"))
    assert [number for number, *_ in found] == [0, 1, 2, 3]
    assert sorted(p[1:] for p in found) == [(4, "int8"), (16, "fp32"), (16, "int4"), (16, "int8")]


ENDLESS = Space((Dimension("p.low", FloatRange(0.0, 1.0)), Dimension("p.high", FloatRange(0.0, 1.0))))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_endless_space_of_which_little_fits_gives_its_whole_budget(tmp_path: Path, sampler: str) -> None:
    """A sixteenth of the points fits; each trial gets one that does."""
    space = replace(ENDLESS, refuses=lambda point: point["p.high"] < 0.75 or point["p.low"] > 0.25)
    study = opened(tmp_path, space, sampler=sampler, max_trials=12)
    points = []
    while trial := study.ask():
        points.append(trial.point)
        study.tell(trial, Outcome("complete"))
    assert len(points) == 12
    assert all(point["p.high"] >= 0.75 and point["p.low"] <= 0.25 for point in points)


def test_an_endless_space_of_which_nothing_fits_ends_at_once(tmp_path: Path) -> None:
    study = opened(tmp_path, replace(ENDLESS, refuses=lambda point: True), max_trials=5)
    assert study.ask() is None
    assert study._trials() == []


def test_a_trial_that_is_released_goes_to_another_process_and_not_back(tmp_path: Path) -> None:
    mine, other = opened(tmp_path, max_trials=2), opened(tmp_path, max_trials=2)
    trial = mine.ask()
    assert trial is not None
    mine.release(trial)
    second = mine.ask()
    assert second is not None
    assert second.number == 1
    mine.tell(second, Outcome("complete"))
    assert mine.ask() is None
    taken = other.ask()
    assert taken == trial
    assert mine.waiting()
    other.release(trial)
    assert other.ask() is None
    assert not other.waiting()
    mine.close()
    other.close()
    next_run = opened(tmp_path, max_trials=2)
    assert next_run.ask() == trial

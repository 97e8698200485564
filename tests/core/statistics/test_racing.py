from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from drupe.core.statistics.racing import Look, chance_to_meet, chance_to_win, decide, stages
from drupe.core.study import Goal

GOAL = Goal("acc-exact", "threshold", 0.85, "higher", 0.95)


def mean(rows: Sequence[tuple[float, ...]]) -> float:
    return math.fsum(row[0] for row in rows) / len(rows)


def look(values: Sequence[float], total: int, *, proportion: bool = True) -> Look:
    return Look({f"{i:04}": (float(v),) for i, v in enumerate(values)}, total, mean, proportion)


def test_stages_grow_to_everything() -> None:
    assert stages(300) == [16, 32, 64, 128, 300]
    assert stages(10) == [10]
    with pytest.raises(ValueError, match="growth > 1"):
        stages(100, growth=1.0)


def test_chance_to_meet_is_the_beta_binomial() -> None:
    chance = chance_to_meet(look([1] * 12 + [0] * 4, 100), 0.8, "higher")
    assert chance == pytest.approx(stats.betabinom(84, 12.5, 4.5).sf(80 - 12 - 1))
    error = chance_to_meet(look([1] * 4 + [0] * 12, 100), 0.2, "lower")
    assert error == pytest.approx(chance)


def test_what_is_certain_has_chance_one_or_none() -> None:
    assert chance_to_meet(look([1] * 90, 100), 0.9, "higher") == 1.0
    assert chance_to_meet(look([0] * 11 + [1] * 5, 100), 0.9, "higher") == 0.0
    assert chance_to_meet(look([1] * 85 + [0] * 15, 100), 0.85, "higher") == 1.0
    assert chance_to_win(look([1, 0, 1], 3), look([1, 1, 0], 3), "higher") == 0.0
    assert chance_to_win(look([1, 0, 1], 3), look([1, 1, 0], 3), "higher", tie_wins=True) == 1.0


def test_paired_candidates_are_told_apart_sooner_than_their_means() -> None:
    incumbent = look([1] * 60 + [0] * 4, 300)
    same_but_worse = look([1] * 48 + [0] * 16, 300)
    assert chance_to_win(same_but_worse, incumbent, "higher") < 0.01
    assert chance_to_win(incumbent, same_but_worse, "higher") > 0.99


def test_other_metrics_go_by_the_normal() -> None:
    random = np.random.default_rng(1)
    slow, fast = random.normal(10, 1, 40), random.normal(9, 1, 40)
    assert chance_to_meet(look(slow, 400, proportion=False), 9.0, "lower") < 0.001
    assert chance_to_win(look(fast, 400, proportion=False), look(slow, 400, proportion=False), "lower") > 0.99


def test_a_clearly_infeasible_candidate_is_dropped_at_the_first_look_with_its_reason() -> None:
    decision = decide([(GOAL, look([1] * 6 + [0] * 10, 300), 0.85)], looks=4)
    assert not decision.go_on
    assert "acc-exact is 0.375 after 16 of 300 samples; ≥ 0.85 is out of reach" in decision.reason


def test_a_candidate_near_the_limit_goes_on() -> None:
    assert decide([(GOAL, look([1] * 13 + [0] * 3, 300), 0.85)], looks=4).go_on


def test_a_hopeless_rival_is_dropped() -> None:
    incumbent = look([1] * 125 + [0] * 3, 300)
    rival = look([1] * 113 + [0] * 15, 300)
    decision = decide([(GOAL, rival, 0.85)], ("higher", rival, incumbent), looks=4)
    assert not decision.go_on
    assert "unlikely to reach the best" in decision.reason


def test_winners_are_seldom_dropped() -> None:
    """Of two equally good candidates, the one that comes out ahead on all samples is dropped with the stated risk."""
    random = np.random.default_rng(3)
    dropped = ahead = 0
    sizes = stages(200)[:-1]
    for _ in range(400):
        base = random.random(200) < 0.9
        other = np.where(random.random(200) < np.where(base, 1 / 30, 0.3), ~base, base)
        if other.sum() <= base.sum():
            continue
        ahead += 1
        for size in sizes:
            ours, theirs = look(other[:size], 200), look(base[:size], 200)
            if not decide([], ("higher", ours, theirs), looks=len(sizes)).go_on:
                dropped += 1
                break
    assert ahead > 50
    assert dropped / ahead <= 0.1


VALUES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40)


@given(VALUES, st.integers(0, 60), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_wider_margin_is_never_easier_to_win_by(
    pairs: list[tuple[bool, bool]], more: int, one: float, other: float
) -> None:
    ours, theirs = zip(*pairs, strict=True)
    total = len(pairs) + more
    for proportion in (True, False):
        candidate, incumbent = (look(v, total, proportion=proportion) for v in (ours, theirs))
        narrow, wide = (chance_to_win(candidate, incumbent, "higher", by=by) for by in sorted((one, other)))
        assert 0 <= wide <= narrow + 1e-9 <= 1 + 2e-9
        assert chance_to_win(candidate, incumbent, "higher") >= narrow - 1e-9


@given(VALUES, st.integers(0, 10))
def test_with_every_sample_seen_a_win_by_more_than_the_margin_is_certain(
    pairs: list[tuple[bool, bool]], margin: int
) -> None:
    """A margin of whole samples is exceeded by one more sample, and not by the margin itself."""
    ours, theirs = zip(*pairs, strict=True)
    n, gain = len(pairs), sum(ours) - sum(theirs)
    for direction, sign in (("higher", 1), ("lower", -1)):
        chance = chance_to_win(look(ours, n), look(theirs, n), direction, by=margin / n, tie_wins=True)
        assert chance == float(sign * gain > margin if margin else sign * gain >= 0)


def test_what_is_nearly_equal_is_dropped_where_it_may_be_and_the_reason_names_the_margin() -> None:
    incumbent, rival = look([1] * 62 + [0] * 2, 150), look([1] * 61 + [0] * 3, 150)
    assert decide([], ("higher", rival, incumbent), looks=3).go_on
    decision = decide([], ("higher", rival, incumbent), looks=3, indifference=0.05)
    assert not decision.go_on
    assert "after 64 of 150 samples it is unlikely to beat the best candidate so far" in decision.reason
    assert "by more than the indifference of 0.05 (chance" in decision.reason


def test_the_winner_is_within_the_margin_of_the_best_and_takes_fewer_samples() -> None:
    from benchmarks.search_fidelity import answers, full, race

    outside, saved = 0, []
    for seed in range(20):
        random = np.random.default_rng(seed)
        table = answers(random, random.uniform(0.88, 0.9, 12), 150)
        (wanted, _), (exact, before), (got, spent) = full(table), race(table), race(table, 0.04)
        if wanted is not None:
            assert exact is not None and got is not None
            outside += table[wanted].mean() - table[got].mean() > 0.04 + 1e-9
        saved.append(before / spent)
    assert outside <= 2
    assert np.median(saved) > 1.3


def test_fewer_evaluations_and_the_same_winner() -> None:
    from benchmarks.search_fidelity import answers, full, race

    random = np.random.default_rng(2)
    accuracies = [*random.uniform(0.3, 0.75, 12), *random.uniform(0.86, 0.97, 12)]
    random.shuffle(accuracies)
    table = answers(random, accuracies, 300)
    (wanted, cost), (got, spent) = full(table), race(table)
    assert wanted == got
    assert cost >= 2 * spent

"""Multi-fidelity: accuracy on a growing part of the samples, and when a candidate may be dropped on what was seen.

The parts are nested, the same samples for every candidate, so candidates are compared in pairs. What is predicted is
the value on *all* selection samples, the one that selects: the samples seen are kept as they are, the unseen ones are
drawn from what the seen ones allow. A candidate is dropped only where the chance that it would be feasible, or would
win, falls under a small risk shared by all looks. So against measuring everything, the winner is lost with at most that
risk. Goals are asked one by one: a candidate that is unlikely to meet any single one can't be feasible.

With a margin of indifference a candidate goes that is unlikely to win by more than the margin. The best one is lost
wrongly only where it would have: so with at most that risk the winner is worse than the best, on all selection samples,
by more than the margin. Margins don't add up, however many candidates there are: the winner is at least as good as
whatever any candidate was dropped against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drupe.core.statistics.bootstrap import Aggregate, Row, influence
from drupe.core.study import Goal

__all__ = ["RISK", "Decision", "Look", "chance_to_meet", "chance_to_win", "decide", "stages"]

RISK = 0.1
"""The chance, over all looks at a candidate, to drop one that would have won."""
_ROUNDING = 1e-9
"""A difference that is the margin up to the rounding of floats is no more than the margin."""
_PRIOR = 0.5
"""What is added to each count of outcomes that were seen (Jeffreys)."""


@dataclass(frozen=True)
class Look:
    """A metric on the part of the samples seen so far. total: how many samples there are in all."""

    rows: Mapping[str, Row]
    total: int
    aggregate: Aggregate
    proportion: bool = False


@dataclass(frozen=True)
class Decision:
    """Whether to go on with a candidate; why not, for a person; the chance that decided."""

    go_on: bool
    reason: str = ""
    chance: float = 1.0


def stages(total: int, first: int = 16, growth: float = 2.0) -> list[int]:
    """Return how many samples are seen after each look: from `first`, growing, to all of them.

    Raises ValueError unless first ≥ 2 and growth > 1.
    """
    if first < 2 or growth <= 1:
        raise ValueError(f"first {first} and growth {growth}: expected first ≥ 2 and growth > 1")
    sizes: list[int] = []
    size = float(first)
    # A last step that adds little is left out: its look would cost a share of the risk for nothing.
    while round(size) * 1.25 < total:
        sizes.append(round(size))
        size *= growth
    return [*sizes, total]


def chance_to_meet(look: Look, limit: float, direction: str) -> float:
    """Return the chance that the metric over all samples is on the right side of `limit`."""
    seen, rest = len(look.rows), look.total - len(look.rows)
    rows = list(look.rows.values())
    if rest <= 0:
        value = look.aggregate(rows)
        return float(value >= limit if direction == "higher" else value <= limit)
    if look.proportion:
        right = round(math.fsum(row[0] for row in rows))
        if direction == "higher":
            return _at_least(math.ceil(limit * look.total - 1e-9) - right, right, seen, rest)
        return _at_least(look.total - math.floor(limit * look.total + 1e-9) - (seen - right), seen - right, seen, rest)
    if seen < 2:
        return 1.0
    value = look.aggregate(rows)
    distance = value - limit if direction == "higher" else limit - value
    return _normal_chance(distance, influence(rows, look.aggregate), seen, rest)


def chance_to_win(
    candidate: Look, incumbent: Look, direction: str, *, tie_wins: bool = False, by: float = 0.0
) -> float:
    """Return the chance that the candidate's metric over all samples is better than the incumbent's, by more than `by`.

    The incumbent must have been seen on the candidate's samples at least. tie_wins: where `by` is 0, equal is enough (a
    later objective decides then).
    """
    tie_wins = tie_wins and by == 0
    ids = [i for i in candidate.rows if i in incumbent.rows]
    rest = candidate.total - len(ids)
    if len(ids) < 2:
        return 1.0
    ours, theirs = [candidate.rows[i] for i in ids], [incumbent.rows[i] for i in ids]
    sign = 1.0 if direction == "higher" else -1.0
    distance = sign * (candidate.aggregate(ours) - incumbent.aggregate(theirs))
    if rest <= 0:
        beyond = distance - by
        return float(beyond >= 0 if tie_wins else beyond > _ROUNDING)
    if candidate.proportion:
        # Each sample says better, equal or worse; unseen ones are predicted from these counts.
        gains = [sign * (o[0] - t[0]) for o, t in zip(ours, theirs, strict=True)]
        better, worse = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
        margin = 0 if tie_wins else math.floor(by * candidate.total + _ROUNDING) + 1
        return _net_gain_chance(better, worse, len(ids), rest, margin)
    mine = influence(ours, candidate.aggregate)
    other = influence(theirs, incumbent.aggregate)
    return _normal_chance(distance - by, [m - o for m, o in zip(mine, other, strict=True)], len(ids), rest)


def decide(
    goals: Sequence[tuple[Goal, Look, float]],
    objective: tuple[str, Look, Look] | None = None,
    *,
    looks: int,
    risk: float = RISK,
    tie_wins: bool = False,
    indifference: float = 0.0,
) -> Decision:
    """Decide at one of `looks` looks whether a candidate goes on.

    goals: each with what was seen of its metric, and its limit resolved. objective: (direction, candidate, incumbent)
    of the objective that matters most, where a feasible incumbent is known on the same samples. With several objectives
    the pick follows the first one, so losing in it loses; where the whole front is wanted, leave it out. tie_wins: see
    `chance_to_win`. indifference: a candidate that is unlikely to win by more than this does not go on either.
    """
    share = risk / max(1, looks)
    for goal, look, limit in goals:
        chance = chance_to_meet(look, limit, goal.direction)
        if chance < share:
            relation = "≥" if goal.direction == "higher" else "≤"
            value = look.aggregate(list(look.rows.values()))
            return Decision(
                False,
                f"{goal.metric} is {value:.4g} after {len(look.rows)} of {look.total} samples; "
                f"{relation} {limit:.4g} is out of reach (chance {chance:.2g})",
                chance,
            )
    if objective is not None:
        direction, candidate, incumbent = objective
        chance = chance_to_win(candidate, incumbent, direction, tie_wins=tie_wins, by=indifference)
        if chance < share:
            what = "reach the best candidate so far"
            if indifference:
                what = f"beat the best candidate so far by more than the indifference of {indifference:g}"
            seen = f"after {len(candidate.rows)} of {candidate.total} samples"
            return Decision(False, f"{seen} it is unlikely to {what} (chance {chance:.2g})", chance)
    return Decision(True)


def _at_least(needed: int, right: int, seen: int, rest: int) -> float:
    """Return P(at least `needed` of `rest` unseen samples are right), given `right` of `seen`: beta-binomial."""
    if needed <= 0:
        return 1.0
    if needed > rest:
        return 0.0
    import numpy as np
    from scipy.special import betaln, gammaln

    a, b = right + _PRIOR, seen - right + _PRIOR
    k = np.arange(needed, rest + 1)
    log = gammaln(rest + 1) - gammaln(k + 1) - gammaln(rest - k + 1) + betaln(k + a, rest - k + b) - betaln(a, b)
    return float(min(1.0, np.exp(log).sum()))


def _net_gain_chance(better: int, worse: int, seen: int, rest: int, margin: int) -> float:
    """Return P(better − worse ≥ margin over all samples); how many differ is predicted, and how many of those win."""
    import numpy as np
    from scipy.special import betaln, gammaln

    # How many of the unseen samples differ (beta-binomial), then how many of those are better (beta-binomial).
    differ = np.arange(rest + 1)
    a, b = better + worse + _PRIOR, seen - better - worse + _PRIOR
    log = gammaln(rest + 1) - gammaln(differ + 1) - gammaln(rest - differ + 1)
    weights = np.exp(log + betaln(differ + a, rest - differ + b) - betaln(a, b))
    kept = weights > 1e-9
    total = 0.0
    for count, weight in zip(differ[kept].tolist(), weights[kept].tolist(), strict=True):
        needed = math.ceil((count + margin - (better - worse)) / 2)
        total += weight * _at_least(needed, better, better + worse, count)
    return min(1.0, total)


def _normal_chance(distance: float, effects: Sequence[float], seen: int, rest: int) -> float:
    """Return P(the distance stays ≥ 0): the unseen samples move it by a normal amount, the spread itself estimated."""
    from scipy.special import stdtr

    n = len(effects)
    mean = math.fsum(effects) / n
    variance = math.fsum((e - mean) ** 2 for e in effects) / (n - 1)
    # The samples are a finite set of which a share is known: what remains is the finite population's correction.
    error = math.sqrt(variance / n * (rest / (seen + rest)))
    if error == 0:
        return float(distance >= 0)
    return float(stdtr(n - 1, distance / error))

"""Reads `search_strategy`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from drupe.core.specs import MetricSpec
from drupe.core.study import MultiFidelity, StudySettings
from drupe.core.workflow.findings import join, nearest, shown
from drupe.core.workflow.model import Evaluator
from drupe.core.workflow.reading import Reading

__all__ = ["check_indifference", "notice_no_effect", "read_search_strategy"]

_PATH = "search_strategy"
_AUTO = "auto"


def _whole(minimum: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seconds(value: Any) -> bool:
    return _number(value) and value > 0


_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sampler": (lambda value: isinstance(value, str) and bool(value), "the name of a sampler"),
    "max_trials": (_whole(1), "a whole number of at least 1"),
    "max_time": (_seconds, "seconds, above 0"),
    "seed": (_whole(0), "a whole number of at least 0"),
    "stop_when_goals_met": (lambda value: isinstance(value, bool), "true or false"),
    "workers": (_whole(1), "a whole number of at least 1"),
    "finalists": (_whole(1), "a whole number of at least 1"),
    "multi_fidelity": (lambda value: isinstance(value, (bool, dict)), "true, false or a mapping"),
    "storage": (lambda value: isinstance(value, str) and bool(value), "the URL of a storage"),
    "options": (lambda value: isinstance(value, dict), "a mapping of the sampler's own options"),
}
_FIDELITY_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "first": (_whole(2), "a whole number of at least 2"),
    "growth": (lambda value: _number(value) and value > 1, "a number above 1"),
    "risk": (lambda value: _number(value) and 0 < value < 1, "a chance between 0 and 1"),
    "keep": (lambda value: value in ("winner", "front"), '"winner" or "front"'),
    "indifference": (
        lambda value: _number(value) and 0 <= value < math.inf,
        "a difference of at least 0, in the metric's own unit",
    ),
}


def read_search_strategy(value: Any, marked: Sequence[str], reading: Reading) -> StudySettings | None:
    """Return the settings, or None where nothing is searched.

    Not given: a workflow that marks values is searched with the defaults. false: marking values is a fault, since one
    of them would have to be picked.
    """
    findings = reading.findings
    if value is None:
        return StudySettings() if marked else None
    if value is False:
        for name in marked:
            findings.fault(
                join("passes", name),
                "is marked to be searched, and search_strategy is false",
                "one value",
                "or leave search_strategy out",
            )
        return None
    if value is True:
        return StudySettings()
    if not isinstance(value, dict):
        findings.fault(_PATH, shown(value), "true, false or a mapping")
        return None
    good = _checked(_PATH, value, _KEYS, reading)
    if "multi_fidelity" in good:
        asked, where = good["multi_fidelity"], join(_PATH, "multi_fidelity")
        details = _checked(where, asked, _FIDELITY_KEYS, reading) if isinstance(asked, dict) else {}
        good["multi_fidelity"] = None if asked is False else MultiFidelity(**details)
        if details.get("indifference") and details.get("keep") == "front":
            reading.findings.fault(
                join(where, "indifference"),
                f"{shown(details['indifference'])} beside keep: front, which keeps what is nearly equal",
                "keep: winner",
                "or leave indifference out",
            )
    _check_sampler(good.get("sampler", _AUTO), reading)
    return StudySettings(**good)


def check_indifference(search: StudySettings | None, evaluator: Evaluator | None, reading: Reading) -> None:
    """A margin of indifference needs an objective that is measured sample by sample."""
    if search is None or search.multi_fidelity is None or not search.multi_fidelity.indifference:
        return
    names = {evaluator.entry_name(objective.metric) for objective in evaluator.objectives} if evaluator else set()
    for metric in evaluator.metrics if evaluator else ():
        if metric.name in names:
            found = reading.registry.find("drupe_metrics", metric.type)
            # What no plugin provides is told as missing.
            if found is None or (metric.data is not None and _by_sample(cast(MetricSpec, found.spec))):
                return
    reading.findings.fault(
        join(_PATH, "multi_fidelity.indifference"),
        "no objective of the evaluator is measured sample by sample",
        "a sub_type with a priority, of a metric with a data_config that is not timed",
        "or leave indifference out",
    )


def notice_no_effect(search: StudySettings | None, evaluator: Evaluator | None, reading: Reading) -> None:
    """Tell what of the strategy has nothing to act on in this workflow."""
    goals = evaluator.goals if evaluator else ()
    told = []
    if search is not None and search.stop_when_goals_met and not goals:
        told.append(("stop_when_goals_met", "true", "the evaluator sets no goal"))
    if search is not None and search.finalists > 1 and not any(goal.confidence is not None for goal in goals):
        told.append(("finalists", str(search.finalists), "no goal has a confidence, so nothing is certified"))
    if search is not None and search.multi_fidelity is not None and not (evaluator and evaluator.metrics):
        told.append(("multi_fidelity", "what is asked for", "nothing is measured without an evaluator"))
    for key, found, why in told:
        reading.findings.notice(join(_PATH, key), found, "without effect", why)


def _by_sample(spec: MetricSpec) -> bool:
    return spec.needs is not None and not spec.timed


def _checked(
    where: str, values: dict[str, Any], keys: dict[str, tuple[Callable[[Any], bool], str]], reading: Reading
) -> dict[str, Any]:
    """Return what is well-formed and given; the rest is told."""
    good: dict[str, Any] = {}
    for key, item in values.items():
        if key not in keys:
            reading.findings.unknown_key(where, key, keys)
        elif item is not None:
            accepts, expected = keys[key]
            if accepts(item):
                good[key] = item
            else:
                reading.findings.fault(join(where, key), shown(item), expected)
    return good


def _check_sampler(name: str, reading: Reading) -> None:
    """A sampler is known where a study plugin has opened a hook for samplers; "auto" is the study's own choice."""
    specs = [entry.spec for entry in reading.registry.of("drupe_samplers")]
    names = [one for spec in specs for one in (spec.name, *spec.aliases)]
    if specs and name.lower() not in (_AUTO, *(one.lower() for one in names)):
        expected = f"one of: {', '.join([_AUTO, *sorted(spec.name for spec in specs)])}"
        where = join(_PATH, "sampler")
        reading.findings.fault(where, f"no sampler is named {name!r}", expected, nearest(name, [_AUTO, *names]))

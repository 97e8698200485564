"""Reads `evaluators`: metrics, goals and objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from drupe.core.metrics import Direction, SubType
from drupe.core.statistics.goals import EXTREMES
from drupe.core.study import Goal, Objective
from drupe.core.workflow.configs import check_config
from drupe.core.workflow.findings import Findings, join, listed, nearest, shown
from drupe.core.workflow.model import Evaluator, MetricEntry
from drupe.core.workflow.reading import Reading

__all__ = ["GOAL_KINDS", "read_evaluators"]

GOAL_KINDS = (
    "threshold",
    "min-improvement",
    "percent-min-improvement",
    "max-degradation",
    "percent-max-degradation",
)
_METRIC_KEYS = ("name", "type", "sub_types", "data_config", "backend")
_SUB_TYPE_KEYS = ("name", "priority", "goal", "higher_is_better", "metric_config")


def read_evaluators(document: Mapping[str, Any], reading: Reading) -> dict[str, Evaluator]:
    """Return the evaluators by name."""
    entries = reading.findings.mapping(document.get("evaluators"), "evaluators", "a mapping of name to evaluator") or {}
    found = {}
    for name, entry in entries.items():
        values = reading.findings.mapping(entry, join("evaluators", name), "a mapping with metrics")
        if values is not None:
            found[name] = _evaluator(name, values, join("evaluators", name), reading)
    return found


def _evaluator(name: str, entry: dict[str, Any], path: str, reading: Reading) -> Evaluator:
    type_ = entry.get("type")
    bound = reading.catalogue.evaluator(type_) if isinstance(type_, str) else None
    group = "user_config"
    if type_ is not None and bound is None:
        # An evaluator with a type of its own (a benchmark harness) is one metric that goes by that type.
        metrics: Any = [{"name": str(type_), **entry}]
        group = "type_args"
        places = [path]
    else:
        for key in entry:
            if key not in ("metrics", "type"):
                reading.findings.unknown_key(path, key, ["metrics", "type"])
        metrics = entry.get("metrics") or []
        if metrics == []:
            reading.findings.notice(path, "an evaluator without metrics", "without effect", "it measures nothing")
        if not isinstance(metrics, list):
            reading.findings.fault(join(path, "metrics"), shown(metrics), "a list of metrics")
            metrics = []
        places = [join(join(path, "metrics"), i) for i in range(len(metrics))]
    found: list[MetricEntry] = []
    goals: list[Goal] = []
    objectives: list[Objective] = []
    for metric, place in zip(metrics, places, strict=True):
        if not isinstance(metric, dict):
            reading.findings.fault(place, shown(metric), "a mapping with name, type and sub_types")
            continue
        entry_ = _metric(metric, place, group, reading, goals, objectives)
        if entry_ is None:
            continue
        if entry_.name in (m.name for m in found):
            reading.findings.fault(join(place, "name"), f"{entry_.name!r} names two metrics", "each name once")
        _tell_same_values(found, entry_, place, reading)
        found.append(entry_)
    _tell_equals(objectives, path, reading)
    return Evaluator(name, tuple(found), tuple(goals), tuple(objectives), *(bound or (None, ())))


def _tell_same_values(before: list[MetricEntry], entry: MetricEntry, path: str, reading: Reading) -> None:
    """Names are joined by a dash, and may hold dashes: two values of one full name would be one."""
    known = {f"{other.name}-{sub_type}": other.name for other in before for sub_type in other.sub_types}
    for sub_type in entry.sub_types:
        other = known.get(f"{entry.name}-{sub_type}")
        if other is not None and other != entry.name:
            found = f"{entry.name!r} gives {entry.name}-{sub_type}, and so does {other!r}"
            reading.findings.fault(join(path, "name"), found, "another name for one of the metrics")


def _tell_equals(objectives: list[Objective], path: str, reading: Reading) -> None:
    """Of equal priorities what stands first in the file decides: Olive refuses them, so nobody says otherwise."""
    for priority in dict.fromkeys(objective.priority for objective in objectives):
        names = [objective.metric for objective in objectives if objective.priority == priority]
        if len(names) > 1:
            reading.findings.notice(
                path,
                f"priority {priority} of {' and '.join(names)}",
                f"in the order of the file: {names[0]} decides first",
                "give each its own number to say otherwise",
            )


def _metric(
    metric: dict[str, Any],
    path: str,
    group: str,
    reading: Reading,
    goals: list[Goal],
    objectives: list[Objective],
) -> MetricEntry | None:
    """group: the key of the mapping that may hold the metric's own options; they may stand beside it as well."""
    findings = reading.findings
    type_name = metric.get("type")
    name = metric.get("name", type_name)
    if not isinstance(name, str) or not name:
        findings.fault(join(path, "name"), shown(name), "a name")
        return None
    found = reading.look_up("metrics", type_name, join(path, "type"))
    user = findings.mapping(metric.get(group), join(path, group)) or {}
    sub_types = _sub_types(metric.get("sub_types"), join(path, "sub_types"), reading)
    own = {key: value for key, value in metric.items() if key not in (*_METRIC_KEYS, group)}
    for key in user:
        if key in own and own[key] != user[key]:
            found_ = f"{shown(user[key])}, and {shown(own[key])} beside {group}"
            findings.fault(join(join(path, group), key), found_, "one of them")
    config = {**user, **own}
    if metric.get("backend") is not None:
        config["backend"] = metric["backend"]
    options = {s["name"]: s["metric_config"] for _, s in sub_types if s.get("metric_config")}
    if options and isinstance(config.get("metric_config", {}), dict):
        config["metric_config"] = {**config.get("metric_config", {}), **options}
    data = metric.get("data_config")
    if data is not None:
        if isinstance(data, str):
            reading.check_reference("data", data, join(path, "data_config"))
        else:
            findings.fault(join(path, "data_config"), shown(data), "the name of a data config")
            data = None
    if found is None:
        return MetricEntry(name, str(type_name), tuple(s["name"] for _, s in sub_types), config, data)
    registered, factory = found
    directions = {s["name"]: s["higher_is_better"] for _, s in sub_types if "higher_is_better" in s}
    if directions and "higher_is_better" in factory.Config.model_fields:
        config.setdefault("higher_is_better", directions)
    metric_ = factory(registered.spec)
    told = Findings()
    checked = check_config(factory.Config, config, "", told)
    for notice in told.notices:
        findings.notice(path, notice.found, notice.now, notice.why)
    for fault in told.faults:
        first = fault.path.partition(".")[0]
        inside = bool(user) and (first not in metric if first else not own)
        told_there = first == "metric_config" and _tell_options(factory.Config, config, sub_types, reading)
        if not told_there:
            findings.add([fault], join(path, group) if inside else path)
    if metric.get("data_config") is None and checked.instance is not None and metric_.needs_data(checked.instance):
        findings.fault(
            join(path, "data_config"), "not given", "the name of a data config", f"{type_name} takes samples"
        )
    reading.check_references(factory.Config, user, join(path, group))
    reading.check_references(factory.Config, own, path)
    names = []
    default = [] if factory.names_values else [(path, {"name": factory.default_sub_type})]
    for place, sub_type in sub_types or default:
        value = _value(metric_, sub_type["name"], checked.instance, place, reading)
        names.append(sub_type["name"])
        direction = _direction(value, sub_type, place, reading)
        if direction is not None:
            full = f"{name}-{sub_type['name']}"
            share = value is not None and value.proportion
            _goal(sub_type.get("goal"), full, direction, join(place, "goal"), reading, goals, share=share)
            _priority(sub_type.get("priority"), full, direction, join(place, "priority"), reading, objectives)
    return MetricEntry(name, reading.registry.reference(registered), tuple(names), config, data)


def _tell_options(
    factory: Any, config: Mapping[str, Any], sub_types: list[tuple[str, dict[str, Any]]], reading: Reading
) -> bool:
    """Record what is wrong in the metric_config of sub-types, each at its place; say whether anything is."""
    found = False
    for place, item in sub_types:
        if item.get("metric_config"):
            told = Findings()
            alone = {item["name"]: item["metric_config"]}
            check_config(factory, {**config, "metric_config": alone}, "", told)
            faults = [fault for fault in told.faults if fault.path.partition(".")[0] == "metric_config"]
            for fault in faults:
                rest = fault.path.removeprefix("metric_config").removeprefix(f".{item['name']}").lstrip(".")
                where = join(join(place, "metric_config"), rest) if rest else join(place, "metric_config")
                reading.findings.fault(where, fault.found, fault.expected, fault.hint)
            found = found or bool(faults)
    return found


def _sub_types(value: Any, path: str, reading: Reading) -> list[tuple[str, dict[str, Any]]]:
    if value is None:
        return []
    if not isinstance(value, list) or not value:
        reading.findings.fault(path, shown(value), "a list of sub-types")
        return []
    found: list[tuple[str, dict[str, Any]]] = []
    for index, item in enumerate(value):
        place = join(path, index)
        item = {"name": item} if isinstance(item, str) else item
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            reading.findings.fault(place, shown(item), "a mapping with a name")
            continue
        for key in item:
            if key not in _SUB_TYPE_KEYS:
                reading.findings.unknown_key(place, key, _SUB_TYPE_KEYS)
        options = item.get("metric_config")
        if options is not None and not isinstance(options, dict):
            reading.findings.fault(join(place, "metric_config"), shown(options), "a mapping of options")
            item = {key: value for key, value in item.items() if key != "metric_config"}
        if item["name"] in (other["name"] for _, other in found):
            reading.findings.fault(join(place, "name"), f"{item['name']!r} is listed twice", "each sub-type once")
            continue
        found.append((place, item))
    return found


def _value(metric: Any, name: str, config: Any, path: str, reading: Reading) -> SubType | None:
    if config is None:
        return cast("SubType | None", metric.sub_types.get(name))
    try:
        return cast(SubType, metric.sub_type(name, config))
    except KeyError:
        names = list(metric.sub_types)
        what = f"{metric.spec.name} has no sub-type {name!r}"
        reading.findings.fault(join(path, "name"), what, listed(names), nearest(name, names))
        return None


def _direction(value: SubType | None, sub_type: Mapping[str, Any], path: str, reading: Reading) -> Direction | None:
    stated = sub_type.get("higher_is_better")
    if stated is not None and not isinstance(stated, bool):
        reading.findings.fault(join(path, "higher_is_better"), shown(stated), "true or false")
        stated = None
    if value is None:
        return None
    if stated is not None and ("higher" if stated else "lower") != value.direction:
        reading.findings.fault(
            join(path, "higher_is_better"),
            f"higher_is_better: {shown(stated)}",
            f"{shown(not stated)}, as {value.direction} is better here",
            "leave the key out",
        )
    return value.direction


def _goal(
    value: Any, metric: str, direction: Direction, path: str, reading: Reading, goals: list[Goal], *, share: bool
) -> None:
    """Read a goal. share: the metric is a proportion, from 0 to 1."""
    if value is None:
        return
    findings = reading.findings
    if not isinstance(value, dict):
        findings.fault(path, shown(value), "a mapping with type and value")
        return
    for key in value:
        if key not in ("type", "value", "confidence"):
            findings.unknown_key(path, key, ["type", "value", "confidence"])
    kind, limit, confidence = value.get("type"), value.get("value"), value.get("confidence")
    good = True
    if kind not in GOAL_KINDS:
        findings.fault(join(path, "type"), shown(kind), listed(GOAL_KINDS), nearest(str(kind), GOAL_KINDS))
        good = False
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not math.isfinite(limit):
        findings.fault(join(path, "value"), "not given" if limit is None else shown(limit), "a number")
        good = False
    elif kind != "threshold" and limit < 0:
        findings.fault(join(path, "value"), shown(limit), "a number of at least 0", "the type says which way it counts")
        good = False
    elif share and not 0 <= limit <= 1 and not str(kind).startswith("percent"):
        hint = f"{limit:g} % is {limit / 100:g}" if 1 < limit <= 100 else ""
        findings.fault(join(path, "value"), shown(limit), "a number from 0 to 1, as the metric is a share", hint)
        good = False
    if confidence is not None and (
        isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0.5 <= confidence < 1
    ):
        findings.fault(join(path, "confidence"), shown(confidence), "a number from 0.5 to below 1", "0.95 is usual")
        good = False
    elif confidence is not None and metric.endswith(EXTREMES):
        found = f"{shown(confidence)} on {metric}, an extreme, which nothing can bound"
        findings.fault(join(path, "confidence"), found, "a quantile, such as p99", "or leave confidence out")
        good = False
    if good and isinstance(limit, (int, float)):
        goals.append(Goal(metric, str(kind), float(limit), direction, confidence))


def _priority(
    value: Any, metric: str, direction: Direction, path: str, reading: Reading, objectives: list[Objective]
) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        reading.findings.fault(path, shown(value), "a whole number, 1 for what matters most")
    elif value < 1 and value != -1:
        expected = "1 for what matters most, 2, …, or -1 for a value that is only looked at"
        reading.findings.fault(path, shown(value), expected)
    elif value > 0:
        objectives.append(Objective(metric, direction, value))

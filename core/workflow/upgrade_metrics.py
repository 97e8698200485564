"""Upgrades metrics: their older parameters, and what a data config says about the outputs that they look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drupe.core.catalogue import Catalogue
from drupe.core.errors import PluginError
from drupe.core.registry import Registry
from drupe.core.specs import MetricSpec
from drupe.core.workflow.findings import Findings, join, shown
from drupe.core.workflow.rules import apply_parameters

__all__ = ["upgrade_metric_parameters", "upgrade_post_processing"]

_GROUP = "post_process_data_config"
_OF_ONE_VALUE = {"sub_type": "name", "priority_rank": "priority", "priority": "priority", "goal": "goal"}
"""Keys beside a metric of one value → keys of its sub-type."""
_RENAMED = {"auc": "auroc"}


def upgrade_metric_parameters(
    document: Mapping[str, Any], registry: Registry, catalogue: Catalogue, findings: Findings
) -> None:
    """Write the parameters of metrics, and of evaluators that are one, as today's, in place."""
    evaluators = document.get("evaluators")
    if not isinstance(evaluators, dict):
        return
    for name, evaluator in evaluators.items():
        path = join("evaluators", name)
        metrics = evaluator.get("metrics") if isinstance(evaluator, dict) else None
        if isinstance(metrics, list):
            for index, metric in enumerate(metrics):
                place = join(join(path, "metrics"), index)
                metric = _today(_with_sub_types(metric, place, registry, findings), place, catalogue, findings)
                metrics[index] = _parameters(metric, "user_config", place, catalogue, findings)
        else:
            evaluators[name] = _parameters(evaluator, "type_args", path, catalogue, findings)


def _with_sub_types(metric: Any, path: str, registry: Registry, findings: Findings) -> Any:
    """The first files gave a metric one value, with its goal and rank beside it."""
    if not isinstance(metric, dict) or "sub_types" in metric or not any(key in metric for key in _OF_ONE_VALUE):
        return metric
    moved = {now: metric[key] for key, now in _OF_ONE_VALUE.items() if metric.get(key) is not None}
    for key in ("higher_is_better", "metric_config"):
        if metric.get(key) is not None:
            moved[key] = metric[key]
    given = [key for key in (*_OF_ONE_VALUE, "higher_is_better", "metric_config") if key in metric]
    name = moved.pop("name", None) or _usual(str(metric.get("type")), registry) or metric.get("name")
    sub_type = {"name": name, **moved}
    findings.notice(path, ", ".join(given), f"sub_types: [{shown(sub_type, 120)}]")
    return {**{key: value for key, value in metric.items() if key not in given}, "sub_types": [sub_type]}


def _usual(type_name: str, registry: Registry) -> str:
    """Return the sub-type that a metric has where none is asked for; empty where there is none."""
    try:
        entry = registry.find("drupe_metrics", type_name)
        return str(registry.resolve(entry).default_sub_type) if entry is not None else ""
    except PluginError:
        return ""


def _today(metric: Any, path: str, catalogue: Catalogue, findings: Findings) -> Any:
    """Write the names of sub-types, and their options, as today's."""
    sub_types = metric.get("sub_types") if isinstance(metric, dict) else None
    if not isinstance(sub_types, list):
        return metric
    type_name = str(metric.get("type"))
    places = [join(join(path, "sub_types"), index) for index in range(len(sub_types))]
    if type_name.lower() == "accuracy":
        sub_types = [_renamed(item, place, findings) for item, place in zip(sub_types, places, strict=True)]
    rules = catalogue.parameters("sub_types", type_name)
    sub_types = [
        apply_parameters(rules, item, place, findings) if isinstance(item, dict) else item
        for item, place in zip(sub_types, places, strict=True)
    ]
    names = [str(item.get("name")) if isinstance(item, dict) else str(item) for item in sub_types]
    own = {catalogue.own_metric(type_name, name) for name in names}
    today = own.pop() if len(own) == 1 else None
    if today is not None:
        findings.notice(join(path, "type"), f"{type_name} with {', '.join(names)}", today)
        return {**metric, "type": today, "sub_types": sub_types}
    return {**metric, "sub_types": sub_types}


def _renamed(item: Any, path: str, findings: Findings) -> Any:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or name not in _RENAMED:
        return item
    findings.notice(join(path, "name"), name, _RENAMED[name])
    return {**item, "name": _RENAMED[name]}


def _parameters(metric: Any, group: str, path: str, catalogue: Catalogue, findings: Findings) -> Any:
    """group: the key of the mapping that may hold parameters; they may stand beside it as well."""
    if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
        return metric
    rules = catalogue.parameters("metrics", metric["type"])
    metric = apply_parameters(rules, metric, path, findings)
    if isinstance(metric.get(group), dict):
        metric = {**metric, group: apply_parameters(rules, metric[group], join(path, group), findings)}
    return metric


def upgrade_post_processing(
    document: Mapping[str, Any], registry: Registry, catalogue: Catalogue, findings: Findings
) -> None:
    """Give a data config's own post-processing function to the metrics that use the data, in place.

    A function that is built in stays where it is. Timed metrics look at no outputs and get none.
    """
    entries = document.get("data_configs")
    for entry in entries if isinstance(entries, list) else ():
        group = entry.get(_GROUP) if isinstance(entry, dict) else None
        if not isinstance(group, dict) or not isinstance(entry.get("user_script"), str):
            continue
        function = group.get("type")
        metrics = list(_metrics_on(document, entry.get("name"), registry))
        if not isinstance(function, str) or function in catalogue.components(_GROUP) or not metrics:
            continue
        options = {key: value for key, value in group.items() if key != "type"}
        for metric in metrics:
            config = metric.setdefault("user_config", None) or {}
            config = {"user_script": entry["user_script"], "post_processing_func": function, **config}
            if "script_dir" in entry:
                config.setdefault("script_dir", entry["script_dir"])
            if options:
                config["func_kwargs"] = {"post_processing_func": options, **config.get("func_kwargs", {})}
            metric["user_config"] = config
        findings.notice(
            join("data_configs", join(str(entry["name"]), _GROUP)),
            f"{_GROUP}.type {function}",
            "user_config.post_processing_func of the metrics that use the data",
        )
        del entry[_GROUP]


def _metrics_on(document: Mapping[str, Any], data: Any, registry: Registry) -> Iterator[dict[str, Any]]:
    evaluators = document.get("evaluators")
    for evaluator in evaluators.values() if isinstance(evaluators, dict) else ():
        metrics = evaluator.get("metrics") if isinstance(evaluator, dict) else None
        for metric in metrics if isinstance(metrics, list) else ():
            if isinstance(metric, dict) and metric.get("data_config") == data and _looks_at_outputs(metric, registry):
                yield metric


def _looks_at_outputs(metric: Mapping[str, Any], registry: Registry) -> bool:
    try:
        entry = registry.find("drupe_metrics", str(metric.get("type")))
    except PluginError:
        return False
    return entry is not None and isinstance(entry.spec, MetricSpec) and not entry.spec.timed

"""Upgrades a workflow of any older form to the current one, with one notice per change.

The result has the keys of the current form only; what is wrong beyond spelling is left for the reader to tell.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from drupe.core.catalogue import Catalogue
from drupe.core.errors import PluginError
from drupe.core.registry import Registry
from drupe.core.specs import AcceleratorSpec
from drupe.core.workflow.findings import Findings, join, shown
from drupe.core.workflow.rules import apply_rules, flatten
from drupe.core.workflow.upgrade_data import upgrade_data_configs
from drupe.core.workflow.upgrade_metrics import upgrade_metric_parameters, upgrade_post_processing
from drupe.core.workflow.upgrade_model import upgrade_input_model
from drupe.core.workflow.upgrade_search import upgrade_search_strategy

__all__ = ["upgrade"]

_RENAMED = {"output_name": "name", "workflow_id": "name", "workflow_host": "host"}
_NO_EFFECT = {
    "no_artifacts": "the winner is handed out, with drupe.json beside it; nothing else is copied out of the store",
    "clean_cache": "a step's key covers all that can change its result; drupe cache gc removes results",
    "log_to_file": "the output folder always has a log",
    "plot_pareto_frontier": "drupe.json and candidates.csv hold every candidate",
    "clean_evaluation_cache": "a measurement's key covers all that can change it",
    "packaging_config": "the output folder is complete; pack it as you like",
    "ort_log_severity_level": "libraries log into the step's log",
    "ort_py_log_severity_level": "libraries log into the step's log",
    "cache_config": "cache_dir names the store",
    "verbose": "log_severity_level says how much is logged",
}
_INPUT_MODEL_DATA = "__input_model_data_config__"
"""What older files call the data that the input model carries."""
_PASS_NO_EFFECT = {
    "clean_run_cache": "a step's key covers all that can change it; drupe cache gc removes results",
    "output_name": "results lie in the store under their digests",
}


def upgrade(
    document: Mapping[str, Any], registry: Registry, catalogue: Catalogue, findings: Findings
) -> dict[str, Any]:
    """Return the workflow in the current form; `document` is not changed."""
    result: dict[str, Any] = copy.deepcopy(dict(document))
    origins = _lift_engine(result, findings)
    for old, new in _RENAMED.items():
        if old in result:
            value = result.pop(old)
            findings.notice(origins.get(old, old), old, new)
            result.setdefault(new, value)
    for key, reason in _NO_EFFECT.items():
        if key in result and result.pop(key) not in (False, None):
            findings.notice(origins.get(key, key), key, "without effect", reason)
    _evaluation_only(result, origins, findings)
    _singular_data(result, findings)
    _leave_out_unused(result, findings)
    _systems(result, registry, catalogue, findings)
    providers = result.pop("execution_providers", None)
    if providers is not None:
        _spread_providers(result, providers, origins.get("execution_providers", "execution_providers"), findings)
    if isinstance(result.get("input_model"), dict):
        result["input_model"], dataset = upgrade_input_model(result["input_model"], catalogue, findings)
        if dataset is not None:
            _model_dataset(result, dataset, registry, catalogue, findings)
    if "data_configs" in result:
        result["data_configs"] = upgrade_data_configs(result["data_configs"], catalogue, findings)
        upgrade_post_processing(result, registry, catalogue, findings)
    if isinstance(result.get("evaluator"), dict):
        result["evaluator"] = _name_evaluator(result, result["evaluator"], "evaluator", findings)
    if isinstance(result.get("passes"), dict):
        result["passes"] = {
            name: _pass(value, join("passes", name), result, catalogue, findings)
            for name, value in result["passes"].items()
        }
    _evaluator_targets(result, findings)
    upgrade_metric_parameters(result, registry, catalogue, findings)
    upgrade_search_strategy(result, origins, findings)
    return result


def _evaluation_only(document: dict[str, Any], origins: Mapping[str, str], findings: Findings) -> None:
    """Olive once had a key for measuring without passes; with it on, its passes did not run."""
    key = "evaluation_only"
    value = document.pop(key, None)
    if value in (None, False):
        return
    passes = document.pop("passes", None)
    why = f"the passes {', '.join(passes)} do not run" if isinstance(passes, dict) and passes else ""
    findings.notice(origins.get(key, key), key, "a workflow without passes", why)
    document.pop("pass_flows", None)


def _singular_data(document: dict[str, Any], findings: Findings) -> None:
    """The first files called data_configs data_config."""
    if isinstance(document.get("data_config"), dict) and "data_configs" not in document:
        findings.notice("data_config", "data_config", "data_configs")
        document["data_configs"] = document.pop("data_config")


def _leave_out_unused(document: dict[str, Any], findings: Findings) -> None:
    """Leave out passes that no flow names: files list passes for flows that they choose among."""
    passes, flows = document.get("passes"), document.get("pass_flows")
    if not isinstance(passes, dict) or not isinstance(flows, list):
        return
    named = [name for flow in flows if isinstance(flow, list) for name in flow if isinstance(name, str)]
    if not named or any(name not in passes for name in named):
        # What a misspelt name may have meant is told with all names at hand.
        return
    for name in [name for name in passes if name not in named]:
        findings.notice(join("passes", name), f"pass {name!r}", "left out", "no flow of pass_flows names it")
    document["passes"] = {name: value for name, value in passes.items() if name in named}


def _lift_engine(document: dict[str, Any], findings: Findings) -> dict[str, str]:
    """Move the keys of `engine` to the top; return where those came from that are upgraded further."""
    origins: dict[str, str] = {}
    if "engine" not in document:
        return origins
    engine = findings.mapping(document.pop("engine"), "engine", "a mapping")
    for key, value in (engine or {}).items():
        path = join("engine", key)
        if key in document and document[key] != value:
            findings.fault(path, f"{key} is also given at the top", "one of them")
            continue
        document[key] = value
        if key in _RENAMED or key in _NO_EFFECT or key in ("execution_providers", "output_model_num"):
            origins[key] = path
        else:
            findings.notice(path, path, key)
    return origins


def _systems(document: dict[str, Any], registry: Registry, catalogue: Catalogue, findings: Findings) -> None:
    for role in ("host", "target"):
        document_value = document.get(role)
        if isinstance(document_value, list):
            document[role] = [
                _name_system(document, item, role, join(role, i), findings) for i, item in enumerate(document_value)
            ]
        elif document_value is not None:
            document[role] = _name_system(document, document_value, role, role, findings)
    systems = document.get("systems")
    if isinstance(systems, dict):
        for name, entry in systems.items():
            if isinstance(entry, dict):
                systems[name] = _system(entry, join("systems", name), registry, catalogue, findings)


def _name_system(document: dict[str, Any], value: Any, role: str, path: str, findings: Findings) -> Any:
    """Give a system that is written in place an entry of `systems`."""
    if not isinstance(value, dict):
        return value
    systems = document.setdefault("systems", {})
    if not isinstance(systems, dict):
        return value
    name = next((n for n, entry in systems.items() if entry == value), None)
    if name is None:
        number = 2
        name = f"{role}_system"
        while name in systems:
            name, number = f"{role}_system_{number}", number + 1
        systems[name] = value
    findings.notice(path, f"a system written in place of its name ({shown(value.get('type'))})", f"systems.{name}")
    return name


def _system(
    entry: dict[str, Any], path: str, registry: Registry, catalogue: Catalogue, findings: Findings
) -> dict[str, Any]:
    entry = apply_rules("systems", flatten(entry, "config", path, findings), path, catalogue, findings)
    accelerators = entry.get("accelerators")
    if isinstance(accelerators, (str, dict)):
        accelerators = [accelerators]
    if isinstance(accelerators, list):
        entry["accelerators"] = [
            _accelerator(item, join(join(path, "accelerators"), i), registry, findings)
            for i, item in enumerate(accelerators)
        ]
    return entry


def _accelerator(value: Any, path: str, registry: Registry, findings: Findings) -> Any:
    if isinstance(value, str):
        entry = registry.find("drupe_accelerators", value)
        providers = entry.spec.providers[:1] if entry and isinstance(entry.spec, AcceleratorSpec) else ()
        now: dict[str, Any] = {"device": value, **({"execution_providers": list(providers)} if providers else {})}
        findings.notice(path, shown(value), shown(now, 120))
        return now
    if isinstance(value, dict) and isinstance(value.get("execution_providers"), str):
        return {**value, "execution_providers": [value["execution_providers"]]}
    return value


def _spread_providers(document: dict[str, Any], providers: Any, origin: str, findings: Findings) -> None:
    """Put the engine's execution providers where they belong: the target's accelerators."""
    providers = [providers] if isinstance(providers, str) else providers
    systems = document.setdefault("systems", {})
    if not isinstance(providers, list) or not isinstance(systems, dict):
        findings.fault(origin, shown(providers), "a list of execution providers, and systems that they go to")
        return
    target = document.get("target") or document.get("host")
    names = target if isinstance(target, list) else [target] if isinstance(target, str) else list(systems)[:1]
    if not names:
        names, systems["local_system"] = ["local_system"], {}
        document["target"] = "local_system"
    for name in names:
        where = f"systems.{name}.accelerators[].execution_providers"
        findings.notice(origin, "execution_providers", where)
        entry = systems.get(name) if isinstance(name, str) else None
        if not isinstance(entry, dict):
            continue
        accelerators = entry.get("accelerators") or [{}]
        if not isinstance(accelerators, list):
            # What it should have been is told where systems are read.
            continue
        entry["accelerators"] = [
            {**item, "execution_providers": list(providers)} if isinstance(item, dict) else item
            for item in accelerators
        ]


def _model_dataset(
    document: dict[str, Any], dataset: Any, registry: Registry, catalogue: Catalogue, findings: Findings
) -> None:
    """The data that an older input model carries serves the metrics that name none."""
    configs = document.setdefault("data_configs", [])
    name = "input_model_dataset"
    findings.notice("input_model.hf_config.dataset", "hf_config.dataset", f"the data config {name!r}")
    entry = {"name": name, "params_config": dataset} if isinstance(dataset, dict) else dataset
    if isinstance(configs, dict):
        configs[name] = entry
    elif isinstance(configs, list):
        configs.append(entry)
    for part in ("passes", "evaluators"):
        document[part] = _with_name(document.get(part), _INPUT_MODEL_DATA, name)
    _calibrated_by(document, name, registry, catalogue, findings)
    for key, evaluator in _mappings(document.get("evaluators")):
        metrics = evaluator.get("metrics")
        for index, metric in enumerate(metrics if isinstance(metrics, list) else []):
            if isinstance(metric, dict) and "data_config" not in metric and not metric.get("user_config"):
                metric["data_config"] = name
                path = f"evaluators.{key}.metrics.{index}"
                findings.notice(path, "the input model's dataset", f"data_config: {name}")


def _with_name(value: Any, older: str, name: str) -> Any:
    """Return a value with a text in it replaced where it is all of one."""
    if isinstance(value, dict):
        return {key: _with_name(item, older, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_name(item, older, name) for item in value]
    return name if value == older else value


def _calibrated_by(
    document: dict[str, Any], name: str, registry: Registry, catalogue: Catalogue, findings: Findings
) -> None:
    """Give the input model's data to passes that take a data config and name no data."""
    for key, entry in _mappings(document.get("passes")):
        config = entry["config"] if isinstance(entry.get("config"), dict) else entry
        if any(word in values for word in ("data_config", "dataloader_func") for values in (entry, config)):
            continue
        if _takes_data(entry.get("type"), registry, catalogue):
            config["data_config"] = name
            findings.notice(join("passes", key), "the input model's dataset", f"data_config: {name}")


def _takes_data(type_name: Any, registry: Registry, catalogue: Catalogue) -> bool:
    if not isinstance(type_name, str):
        return False
    try:
        found = registry.find("drupe_passes", catalogue.current("passes", type_name) or type_name)
        return found is not None and "data_config" in registry.resolve(found).Config.model_fields
    except PluginError:
        return False


def _evaluator_targets(document: dict[str, Any], findings: Findings) -> None:
    """The first files named the system that measures beside the metrics."""
    for name, evaluator in _mappings(document.get("evaluators")):
        if "metrics" not in evaluator or "target" not in evaluator:
            continue
        path = join(join("evaluators", name), "target")
        target = evaluator.pop("target")
        if document.get("evaluator", name) == name and document.setdefault("target", target) == target:
            findings.notice(path, "target", "the workflow's target")
        elif document.get("evaluator") == name:
            findings.fault(path, f"{shown(target)}, and the workflow's target is {shown(document['target'])}", "one")
        else:
            findings.notice(path, "target", "left out", "no metric of this evaluator is asked for")


def _mappings(value: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(k, v) for k, v in value.items() if isinstance(v, dict)] if isinstance(value, dict) else []


def _name_evaluator(document: dict[str, Any], value: dict[str, Any], path: str, findings: Findings) -> Any:
    """Give an evaluator that is written in place an entry of `evaluators`."""
    evaluators = document.setdefault("evaluators", {})
    if not isinstance(evaluators, dict):
        return value
    name, number = "evaluator", 2
    while name in evaluators:
        name, number = f"evaluator_{number}", number + 1
    evaluators[name] = value
    findings.notice(path, "an evaluator written in place of its name", f"evaluators.{name}")
    return name


def _pass(value: Any, path: str, document: dict[str, Any], catalogue: Catalogue, findings: Findings) -> Any:
    if isinstance(value, list):
        return [_pass(item, join(path, i), document, catalogue, findings) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    entry = flatten(value, "config", path, findings)
    if "params" in entry and isinstance(entry["params"], dict):
        entry = flatten(entry, "params", path, findings)
    for key, reason in _PASS_NO_EFFECT.items():
        if key in entry and entry.pop(key) not in (False, None):
            findings.notice(join(path, key), key, "without effect", reason)
    if entry.pop("disable_search", False):
        findings.notice(join(path, "disable_search"), "disable_search", "left out", "only marked values are searched")
    if isinstance(entry.get("host"), dict):
        entry["host"] = _name_system(document, entry["host"], "host", join(path, "host"), findings)
    if isinstance(entry.get("evaluator"), dict):
        entry["evaluator"] = _name_evaluator(document, entry["evaluator"], join(path, "evaluator"), findings)
    return apply_rules("passes", _moved(entry, path, document, catalogue, findings), path, catalogue, findings)


def _moved(
    entry: dict[str, Any], path: str, document: dict[str, Any], catalogue: Catalogue, findings: Findings
) -> dict[str, Any]:
    """Put what the first files gave a pass where it belongs today, unless that place is taken."""
    type_name = entry.get("type")
    if not isinstance(type_name, str):
        return entry
    for key, place in catalogue.parameters("passes", catalogue.current("passes", type_name) or type_name).moved.items():
        if key not in entry:
            continue
        *outer, last = place.split(".")
        holder: Any = document
        for part in outer:
            holder = holder.setdefault(part, {}) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or holder.get(last, entry[key]) != entry[key]:
            findings.fault(join(path, key), f"{key} is also given as {place}, otherwise", "one of them")
        else:
            holder[last] = entry[key]
            findings.notice(join(path, key), key, place)
        entry = {name: value for name, value in entry.items() if name != key}
    return entry

"""Upgrades `data_configs` of an older form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.core.catalogue import Catalogue
from drupe.core.workflow.findings import Findings, join, shown
from drupe.core.workflow.rules import apply_rules, flatten

__all__ = ["GROUPS", "upgrade_data_configs"]

GROUPS = {
    "load_dataset": "load_dataset_config",
    "pre_process_data": "pre_process_data_config",
    "post_process_data": "post_process_data_config",
    "dataloader": "dataloader_config",
}
"""Olive's older component names → the groups of a data config."""
_LOADING = ("data_name", "subset", "split", "data_files", "data_dir", "streaming", "trust_remote_code", "token", "name")
_BATCHING = ("batch_size", "shuffle", "drop_last", "num_workers", "task")


def upgrade_data_configs(value: Any, catalogue: Catalogue, findings: Findings) -> Any:
    """Return the current form: a list of entries with a name."""
    if isinstance(value, dict):
        findings.notice("data_configs", "a mapping", "a list of entries with a name")
        entries = [_named(key, entry, findings) for key, entry in value.items()]
        paths = [join("data_configs", key) for key in value]
    elif isinstance(value, list):
        entries, paths = list(value), [join("data_configs", i) for i in range(len(value))]
    else:
        return value
    return [
        _entry(entry, path, catalogue, findings) if isinstance(entry, dict) else entry
        for entry, path in zip(entries, paths, strict=True)
    ]


def _named(key: str, entry: Any, findings: Findings) -> Any:
    if not isinstance(entry, dict):
        return entry
    if "name" in entry and entry["name"] != key:
        why = "passes and metrics refer to it by its key"
        findings.notice(join("data_configs", key), f"name {entry['name']!r}", f"name {key!r}", why)
    return {**entry, "name": key}


def _entry(entry: dict[str, Any], path: str, catalogue: Catalogue, findings: Findings) -> dict[str, Any]:
    entry = dict(entry)
    if "type" not in entry and catalogue.default("data") is not None:
        entry["type"] = catalogue.default("data")
    _spread_params(entry, path, findings)
    components = entry.pop("components", None)
    if isinstance(components, dict):
        for old, component in components.items():
            _merge(entry, _group(old), component, join(join(path, "components"), old), findings)
    elif components is not None:
        entry["components"] = components
    for group in GROUPS.values():
        if isinstance(entry.get(group), dict):
            entry[group] = flatten(entry[group], "params", join(path, group), findings)
    _first_label(entry)
    entry = apply_rules("data", entry, path, catalogue, findings)
    preparing = entry.get("pre_process_data_config")
    if isinstance(preparing, dict) and "dataset_type" in preparing:
        entry["pre_process_data_config"] = _dataset_type(preparing, join(path, "pre_process_data_config"), findings)
    return entry


def _first_label(entry: dict[str, Any]) -> None:
    """Older files list the columns with labels, of which one is used."""
    group = entry.get("pre_process_data_config")
    columns = group.get("label_cols") if isinstance(group, dict) else None
    if isinstance(group, dict) and isinstance(columns, list) and len(columns) == 1:
        entry["pre_process_data_config"] = {**group, "label_cols": columns[0]}


def _spread_params(entry: dict[str, Any], path: str, findings: Findings) -> None:
    """Put `params_config` into the groups: what loads, what prepares, what batches."""
    params = entry.pop("params_config", None)
    if params is None:
        return
    if not isinstance(params, dict):
        entry["params_config"] = params
        return
    place = join(path, "params_config")
    kwargs = params.get("component_kwargs")
    if not isinstance(kwargs, dict):
        if kwargs is not None:
            findings.fault(join(place, "component_kwargs"), shown(kwargs), "a mapping of component to options")
        kwargs = {}
    for key, value in params.items():
        if key == "component_kwargs":
            continue
        group = GROUPS["load_dataset" if key in _LOADING else "dataloader" if key in _BATCHING else "pre_process_data"]
        findings.notice(join(place, key), f"params_config.{key}", f"{group}.{key}")
        _put(entry, group, {key: value}, join(place, key), findings)
    for old, values in kwargs.items():
        _merge(entry, _group(old), values, join(join(place, "component_kwargs"), old), findings)


def _group(older: str) -> str:
    return GROUPS.get(older, older)


def _merge(entry: dict[str, Any], group: str, values: Any, path: str, findings: Findings) -> None:
    older = path.rpartition(".")[2]
    where = path.split(".")[-2]
    findings.notice(path, f"{where}.{older}", group)
    if not isinstance(values, dict):
        entry[group] = values
        return
    values = flatten({k: v for k, v in values.items() if not (k == "name" and v == older)}, "params", path, findings)
    _put(entry, group, values, path, findings)


def _put(entry: dict[str, Any], group: str, values: dict[str, Any], path: str, findings: Findings) -> None:
    there = entry.get(group)
    if there is not None and not isinstance(there, dict):
        findings.fault(path, f"{group} is {shown(there)}", "a mapping that these options can go to")
        return
    entry[group] = {**(there or {}), **values}


def _dataset_type(group: Mapping[str, Any], path: str, findings: Findings) -> dict[str, Any]:
    """Text generation data was either running text ("corpus") or question and answer ("pair")."""
    result = dict(group)
    kind = result.pop("dataset_type")
    place = join(path, "dataset_type")
    if kind == "corpus":
        findings.notice(place, "dataset_type: corpus", "left out", "text_cols or text_template say what the text is")
    elif kind == "pair":
        findings.notice(place, "dataset_type: pair", "prompt_template and answer_template")
        for side, new in (("input", "prompt_template"), ("output", "answer_template")):
            template, column = result.pop(f"{side}_template", None), result.pop(f"{side}_col", None)
            if template is not None:
                # An older template holds its column as {text}.
                result[new] = str(template).replace("{text}", "{" + str(column) + "}") if column else template
            elif column is not None:
                result[new] = "{" + str(column) + "}"
        for gone in ("pair_format", "ignore_source_in_labels"):
            if gone in result:
                findings.notice(join(path, gone), gone, "left out", "the loss is taken on the answer only")
                del result[gone]
    else:
        findings.fault(place, repr(kind), "corpus or pair")
    return result

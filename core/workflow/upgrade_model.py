"""Upgrades an `input_model` of an older form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.core.catalogue import Catalogue
from drupe.core.workflow.findings import Findings, join, shown
from drupe.core.workflow.rules import apply_rules, flatten

__all__ = ["upgrade_input_model"]

_PATH = "input_model"
_FROM_CODE = ("model_script", "script_dir", "dummy_inputs_func")


def upgrade_input_model(
    entry: Mapping[str, Any], catalogue: Catalogue, findings: Findings
) -> tuple[dict[str, Any], Any]:
    """Return the current form of an input model, and the data set that an older one carries (or None)."""
    result = flatten(entry, "config", _PATH, findings)
    if "type" not in result and catalogue.default("models") is not None:
        findings.notice(join(_PATH, "type"), "no type", str(catalogue.default("models")), "the default")
        result["type"] = catalogue.default("models")
    older, dataset = result.get("hf_config"), None
    if isinstance(older, dict):
        older = dict(older)
        dataset = older.pop("dataset", None)
        _without_second_name(result, older, findings)
        older = _joined_load_kwargs(older, findings)
        result["hf_config"] = older
        if not older:
            del result["hf_config"]
            # A model that a script loads stays one, whatever its data belong to.
            meant = catalogue.parameters("models", str(result["type"])).means.get("hf_config")
            meant = None if "model_loader" in result else meant
            result = {**result, "type": meant or result["type"]}
        if "components" not in older:
            _without_export_code(result, findings)
    result = apply_rules("models", result, _PATH, catalogue, findings)
    _tell_rest(result, catalogue, findings)
    return result, dataset


def _tell_rest(model: dict[str, Any], catalogue: Catalogue, findings: Findings) -> None:
    """Name what an older form's inner mapping has and nothing knows, where it stands."""
    rest = model.get("hf_config")
    rules = catalogue.parameters("models", str(model.get("type")))
    known = [key.partition(".")[2] for key in (*rules.renamed, *rules.dropped) if key.startswith("hf_config.")]
    if not isinstance(rest, dict) or not known:
        return
    for key in rest:
        findings.unknown_key(join(_PATH, "hf_config"), key, known)
    del model["hf_config"]


def _without_second_name(model: Mapping[str, Any], older: dict[str, Any], findings: Findings) -> None:
    if "model_path" in model and "model_name" in older:
        name = older.pop("model_name")
        findings.notice(
            join(_PATH, "hf_config.model_name"),
            f"hf_config.model_name {shown(name)} beside model_path",
            "left out",
            "configuration and tokenizer come from model_path",
        )


def _joined_load_kwargs(older: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """Two older names of the same thing may stand side by side."""
    if isinstance(older.get("model_loading_args"), dict) and isinstance(older.get("from_pretrained_args"), dict):
        first = older.pop("model_loading_args")
        findings.notice(join(_PATH, "hf_config.model_loading_args"), "hf_config.model_loading_args", "load_kwargs")
        older["from_pretrained_args"] = {**first, **older["from_pretrained_args"]}
    return older


def _without_export_code(model: dict[str, Any], findings: Findings) -> None:
    """Functions that told an older exporter the inputs: today they follow from the model and its task."""
    names = [key for key in _FROM_CODE if key in model]
    if isinstance(model.get("io_config"), str):
        names.append("io_config")
    if "model_loader" in model:
        return
    for key in names:
        value = model.pop(key)
        if key == "io_config" and "past" in str(value):
            model[key] = {"kv_cache": True}
            findings.notice(
                join(_PATH, key),
                f"{key} {shown(value)}",
                f"{key}: {{kv_cache: true}}",
                "its name says that the graph takes keys and values of earlier tokens; all else follows from the model",
            )
            continue
        findings.notice(
            join(_PATH, key), f"{key} {shown(value)}", "left out", "inputs follow from the model and its task"
        )

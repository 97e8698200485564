"""Reads a workflow file: parsed, upgraded, checked against what the installed plugins declare; all faults at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drupe.core.catalogue import get_catalogue
from drupe.core.digests import digest_of
from drupe.core.errors import ConfigError, Fault
from drupe.core.introspect import cache_folder
from drupe.core.policy import check_rules
from drupe.core.registry import Registry
from drupe.core.study import StudySettings
from drupe.core.workflow.check_parts import check_parts
from drupe.core.workflow.clients import told_once, with_client
from drupe.core.workflow.configs import check_config
from drupe.core.workflow.document import read_document
from drupe.core.workflow.findings import Findings, join, listed, nearest, shown
from drupe.core.workflow.model import Notice, PassEntry, Workflow
from drupe.core.workflow.read_data import read_data, without_unused_data
from drupe.core.workflow.read_evaluators import read_evaluators
from drupe.core.workflow.read_passes import Passes, read_flows, read_passes
from drupe.core.workflow.read_strategy import check_indifference, notice_no_effect, read_search_strategy
from drupe.core.workflow.read_systems import read_roles, read_systems
from drupe.core.workflow.reading import Reading, take_placeholders, walk
from drupe.core.workflow.upgrade import upgrade

__all__ = ["TOP_LEVEL", "Examination", "examine", "read_workflow"]

TOP_LEVEL = (
    "input_model",
    "systems",
    "data_configs",
    "evaluators",
    "evaluator",
    "passes",
    "pass_flows",
    "search_strategy",
    "host",
    "target",
    "cache_dir",
    "output_dir",
    "evaluate_input_model",
    "log_severity_level",
    "baseline",
    "name",
    "seed",
    "plugins",
    "azureml_client",
    "$schema",
)
"""The keys of the current form; `engine` and other older ones are upgraded before they are looked at."""
_UNPROVIDED = {
    "auto_optimizer_config": "passes chosen for you (name them as passes; drupe passes lists what there is)",
    "data_root": "a root for relative data paths (they resolve against the workflow's folder)",
}
_CONSENTS = {
    "remote-code": "code that comes with the model would run",
    "user-scripts": "a script would run",
    "pickle": "weights that are pickles would be loaded, and a pickle can run code",
}
_SCRIPT_KEYS = ("user_script", "model_script", "script_dir")


@dataclass(frozen=True)
class Examination:
    """What reading a workflow found. workflow is None where the file could not be parsed; it is whole only where
    there is neither a fault nor something missing."""

    workflow: Workflow | None
    notices: tuple[Notice, ...] = ()
    faults: tuple[Fault, ...] = ()

    def of_kind(self, kind: str) -> tuple[Fault, ...]:
        """Return the faults of one kind: "fault", "missing" or "needs"."""
        return tuple(fault for fault in self.faults if fault.kind == kind)


def read_workflow(
    path: Path,
    registry: Registry,
    allow: frozenset[str] = frozenset(),
    overrides: Mapping[str, Any] | None = None,
    *,
    document: Mapping[str, Any] | None = None,
    all_systems: bool = False,
) -> Workflow:
    """Return the workflow in a file.

    allow: the user's consents ("remote-code", "user-scripts", "pickle"). overrides: top-level keys that the command
    line sets. document: what to read in place of the file, which then only names a folder. all_systems: those that
    nothing runs on are read as well. Absent files and consents not given come back as `needs`. Raises ConfigError
    with every fault, and with everything that no installed plugin provides.
    """
    found = examine(path, registry, allow, overrides, document=document, all_systems=all_systems)
    if found.workflow is None or found.of_kind("fault") or found.of_kind("missing"):
        raise ConfigError(faults=[*found.of_kind("fault"), *found.of_kind("missing"), *found.of_kind("needs")])
    return found.workflow


def examine(
    path: Path,
    registry: Registry,
    allow: frozenset[str] = frozenset(),
    overrides: Mapping[str, Any] | None = None,
    *,
    document: Mapping[str, Any] | None = None,
    all_systems: bool = False,
) -> Examination:
    """Read a workflow file and return everything that was found; never raises for what stands in the file.

    all_systems: those that nothing runs on are read as well.
    """
    path = Path(path)
    try:
        parsed = _overridden(read_document(path) if document is None else document, overrides or {})
    except ConfigError as error:
        return Examination(None, faults=error.faults)
    findings = Findings()
    catalogue = get_catalogue()
    document = upgrade(parsed, registry, catalogue, findings)
    places: set[str] = set()
    checked = take_placeholders(document, "", findings, places)
    reading = Reading(registry, catalogue, findings, path.absolute().parent, allow, all_systems)
    workflow = _read(path, document, checked, reading)
    told = told_once(findings.faults, checked, places)
    faults = tuple(fault for fault in told if not _awaits_value(fault, places))
    notices = tuple(findings.notices)
    needs = tuple(fault for fault in faults if fault.kind == "needs")
    return Examination(replace(workflow, notices=notices, needs=needs), notices, faults)


def _overridden(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with top-level keys replaced, and taken out of where older files have them."""
    result = {**document, **overrides}
    engine = result.get("engine")
    if isinstance(engine, dict):
        result["engine"] = {key: value for key, value in engine.items() if key not in overrides}
    return result


def _awaits_value(fault: Fault, places: set[str]) -> bool:
    """Whether a value that is still to be filled in is said to be missing: it was told as such already."""
    return fault.kind == "fault" and fault.path in places


def _read(path: Path, document: dict[str, Any], checked: dict[str, Any], reading: Reading) -> Workflow:
    findings = reading.findings
    _check_top_level(checked, findings)
    checked = without_unused_data(with_client(checked), reading)
    _needs_of_scripts(checked, reading)
    systems = read_systems(checked, reading)
    host, targets = read_roles(checked, systems, reading)
    data = read_data(checked, reading)
    input_model, kind = _input_model(checked, reading)
    evaluators = read_evaluators(checked, reading)
    passes = read_passes(checked, evaluators, reading)
    flows = read_flows(checked, passes.entries, reading)
    options = _options(checked, reading)
    evaluator = _evaluator(checked, evaluators, passes.entries, findings)
    if checked.get("passes") in (None, {}) and evaluator is None and "auto_optimizer_config" not in checked:
        expected = "at least one pass, or an evaluator that measures the input model as it is"
        findings.fault("passes", "not given", expected)
    search = _search(checked, passes, reading)
    judge = evaluators.get(evaluator or "")
    check_indifference(search, judge, reading)
    notice_no_effect(search, judge, reading)
    check_parts({**data, **passes.data}, judge, reading, searching=bool(passes.marked) or len(flows) > 1)
    if evaluators and evaluator is None and checked.get("evaluator") is None:
        findings.notice("evaluators", ", ".join(evaluators), "left out", "no evaluator is named by the key evaluator")
    baseline = _baseline(checked, passes.entries, findings)
    if baseline is not None and not any(goal.kind != "threshold" for goal in (judge.goals if judge else ())):
        findings.notice("baseline", f"{baseline!r}", "without effect", "no goal compares with a baseline")
    return Workflow(
        path=path.absolute(),
        name=_text(checked, "name", path.stem, findings),
        input_model=input_model,
        model_kind=kind,
        systems=systems,
        data={**data, **passes.data},
        evaluators=evaluators,
        passes=passes.entries,
        flows=flows,
        evaluator=evaluator,
        host=host,
        targets=targets,
        search=search,
        cache_dir=_cache_dir(checked, reading),
        store_url=_store_url(checked),
        output_dir=_folder(checked, "output_dir", f"outputs/{path.stem}", reading),
        baseline=baseline,
        seed=_seed(checked, findings),
        plugins=_plugins(checked, findings),
        options=options,
        document=document,
        unmarked=tuple(passes.unmarked),
    )


def _plugins(document: Mapping[str, Any], findings: Findings) -> Mapping[str, Any]:
    section = findings.mapping(document.get("plugins"), "plugins") or {}
    findings.add(check_rules(section, "plugins"))
    return section


def _check_top_level(document: Mapping[str, Any], findings: Findings) -> None:
    for key in document:
        if key in _UNPROVIDED:
            findings.fault(key, f"{_UNPROVIDED[key]}: nothing provides this", kind="missing", hint="known as: not yet")
        elif key not in TOP_LEVEL:
            findings.fault(
                key,
                f"unknown key {key!r}",
                listed(TOP_LEVEL[:-1], most=len(TOP_LEVEL)),
                nearest(key, (*TOP_LEVEL, "engine")),
            )
    if "input_model" not in document:
        findings.fault("input_model", "not given", "the model to start from")


def _needs_of_scripts(document: Mapping[str, Any], reading: Reading) -> None:
    """Files with the user's code, and what asks for consent, wherever they stand."""
    for path, key, value in walk(dict(document)):
        if key in _SCRIPT_KEYS and isinstance(value, str) and value:
            reading.need_file(value, path)
            if key != "script_dir":
                reading.need_consent("user-scripts", path, f"{value} is code that would run")
        elif key == "trust_remote_code" and value in (True, "true", "True"):
            reading.need_consent(
                "remote-code", path, "trust_remote_code: code that comes with a model or data would run"
            )


def _input_model(document: Mapping[str, Any], reading: Reading) -> tuple[Mapping[str, Any], str]:
    from drupe.core.sources import find_source

    entry = reading.findings.mapping(document.get("input_model"), "input_model", "a mapping with type and model_path")
    if not entry:
        if entry is not None and "input_model" in document:
            reading.findings.fault("input_model", shown(document["input_model"]), "a mapping with type and model_path")
        return {}, ""
    values = {key: value for key, value in entry.items() if key != "type"}
    found = reading.look_up("models", entry.get("type"), "input_model.type")
    if found is None:
        return entry, str(entry.get("type") or "")
    registered, factory = found
    checked = check_config(factory.Config, values, "input_model", reading.findings)
    reading.check_references(factory.Config, values, "input_model")
    if checked.instance is not None:
        kind = factory(registered.spec)
        for consent in kind.consents(checked.instance):
            told = any(
                f"--allow {consent}" in f.hint and f.path.startswith("input_model") for f in reading.findings.faults
            )
            if not told:
                reading.need_consent(consent, "input_model", _CONSENTS.get(consent, consent))
        for role, reference in kind.references(checked.instance).items():
            path = _reference_path(values, role, reference)
            try:
                source = find_source(reading.registry, reference, reading.folder)
            except ConfigError as error:
                _no_source(reference, path, error, reading)
                continue
            told = any(fault.path == path and fault.kind == "needs" for fault in reading.findings.faults)
            found_there = source.check(reference, reading.folder)
            # That a script is not there was told with all other scripts.
            reading.findings.add((f for f in found_there if not (told and f.kind == "needs")), path)
    type_name = reading.registry.reference(registered)
    return {**values, "type": type_name}, type_name


def _reference_path(values: Mapping[str, Any], role: str, reference: Any) -> str:
    plain = reference.get("path") if isinstance(reference, Mapping) else reference
    return join("input_model", next((k for k, v in values.items() if v in (reference, plain)), f"{role}_path"))


def _no_source(reference: Any, path: str, error: ConfigError, reading: Reading) -> None:
    if isinstance(reference, Mapping) and isinstance(reference.get("type"), str):
        reading.find("sources", reference["type"], join(path, "type"))
    else:
        reading.findings.fault(path, str(error))


def _evaluator(
    document: Mapping[str, Any], evaluators: Mapping[str, Any], passes: Mapping[str, PassEntry], findings: Findings
) -> str | None:
    name = document.get("evaluator")
    if name is None:
        # The evaluator of the last pass is the one that judges what comes out.
        return next((entry.evaluator for entry in reversed(list(passes.values())) if entry.evaluator), None)
    if not isinstance(name, str) or name not in evaluators:
        expected = listed(evaluators) or "an entry of evaluators"
        findings.fault("evaluator", f"no evaluator is named {name!r}", expected, nearest(str(name), evaluators))
        return None
    return name


def _search(document: Mapping[str, Any], passes: Passes, reading: Reading) -> StudySettings | None:
    flows = document.get("pass_flows")
    several = isinstance(flows, list) and len(flows) > 1
    value = document.get("search_strategy")
    if several and value in (None, False):
        # Older files list the flows to try without a search strategy, or with it turned off.
        read_search_strategy(value, passes.marked, reading)
        return StudySettings()
    return read_search_strategy(value, passes.marked, reading)


def _baseline(document: Mapping[str, Any], passes: Mapping[str, Any], findings: Findings) -> str | None:
    name = document.get("baseline")
    if name is None:
        return None
    written = document.get("passes")
    names = list(written) if isinstance(written, dict) else []
    if not isinstance(name, str) or name not in names:
        hint = nearest(str(name), names)
        findings.fault("baseline", f"no pass is named {name!r}", listed(names), hint)
        return None
    return name


def _seed(document: Mapping[str, Any], findings: Findings) -> int:
    seed = document.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        findings.fault("seed", shown(seed), "a whole number of at least 0")
        return 0
    return seed


def _text(document: Mapping[str, Any], key: str, default: str, findings: Findings) -> str:
    value = document.get(key, default)
    if not isinstance(value, str) or not value:
        findings.fault(key, shown(value), "a text")
        return default
    return value


def _folder(document: Mapping[str, Any], key: str, default: str, reading: Reading) -> Path:
    return reading.folder / Path(_text(document, key, default, reading.findings)).expanduser()


def _store_url(document: Mapping[str, Any]) -> str | None:
    value = document.get("cache_dir")
    return value if isinstance(value, str) and "://" in value else None


def _cache_dir(document: Mapping[str, Any], reading: Reading) -> Path:
    """The store's folder on this machine: of a store below a URL, the folder that is in front of it."""
    url = _store_url(document)
    if url is None:
        return _folder(document, "cache_dir", "cache", reading)
    return cache_folder() / "stores" / digest_of(url)[:24]


def _options(document: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    findings = reading.findings
    options: dict[str, Any] = {}
    evaluate = document.get("evaluate_input_model")
    if evaluate is not None:
        if not isinstance(evaluate, bool):
            findings.fault("evaluate_input_model", shown(evaluate), "true or false")
        options["evaluate_input_model"] = evaluate
    level = document.get("log_severity_level")
    if level is not None:
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= 4:
            findings.fault("log_severity_level", shown(level), "0 (everything) to 4 (fatal errors only)")
        options["log_severity_level"] = level
    client = document.get("azureml_client")
    if client is not None:
        options["azureml_client"] = findings.mapping(client, "azureml_client")
        _tell_unused_client(document, findings)
        known = any("azureml" in e.spec.name.lower() for e in reading.registry.of("drupe_hosts"))
        if not known and not any(f.kind == "missing" and "azureml" in f.found.lower() for f in findings.faults):
            reading.find("systems", "AzureML", "azureml_client")
    return options


def _tell_unused_client(document: Mapping[str, Any], findings: Findings) -> None:
    """Say of a workspace that nothing of the workflow is in it."""
    rest = {key: value for key, value in document.items() if key != "azureml_client"}
    if "azureml" not in repr(rest).lower():
        findings.notice("azureml_client", "azureml_client", "left out", "no system and no reference is in Azure ML")

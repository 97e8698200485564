"""Checks an output folder after the fact: the files are what was handed over, and measuring again agrees.

The digests of every file are compared with the manifest; then each metric of the verdict is measured again on some of
its samples, with the files as they lie there, and compared sample by sample with what the manifest says.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.certification import with_certification_split
from drupe.core.engine import Engine
from drupe.core.errors import ConfigError
from drupe.core.measuring import Measurer
from drupe.core.metrics import Measurement
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.results import MANIFEST
from drupe.core.store import Store
from drupe.core.workflow.read import read_workflow

__all__ = ["Finding", "verify_output"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. ok: it holds."""

    target: str
    what: str
    ok: bool
    text: str


def verify_output(
    output: Path,
    registry: Registry,
    *,
    samples: int = 20,
    allow: frozenset[str] = frozenset(),
    events: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> list[Finding]:
    """Return what holds and what does not. Raises ConfigError when the folder is no output folder of a run."""
    path = output / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{output} holds no {MANIFEST}; name the output folder of a run")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    findings: list[Finding] = []
    intact: dict[str, Path] = {}
    for name, target in manifest["targets"].items():
        if target["model"] is None:
            findings.append(Finding(name, "model", True, "nothing was handed over, so there is nothing to check"))
            continue
        folder = output / target["model"]
        found = _check_files(name, folder, target["artifact"])
        findings += found
        if all(f.ok for f in found):
            intact[name] = folder
    if intact:
        findings += _measure_again(output, manifest, intact, registry, samples, allow, events)
    return findings


def _check_files(target: str, folder: Path, artifact: Mapping[str, Any]) -> list[Finding]:
    expected = artifact["files"]
    actual = Model.from_dir(artifact["kind"], folder).files if folder.is_dir() else {}
    findings = []
    for name in sorted(set(expected) | set(actual)):
        if name not in actual:
            findings.append(Finding(target, name, False, "is missing"))
        elif name not in expected:
            findings.append(Finding(target, name, False, "was not there when the model was handed over"))
        elif actual[name] != expected[name]:
            findings.append(Finding(target, name, False, "was changed since the model was handed over"))
    return findings or [Finding(target, "files", True, f"all {len(expected)} are as handed over")]


def _measure_again(
    output: Path,
    manifest: Mapping[str, Any],
    folders: Mapping[str, Path],
    registry: Registry,
    samples: int,
    allow: frozenset[str],
    events: Callable[[Mapping[str, Any]], None],
) -> list[Finding]:
    source = (output / manifest["workflow_file"]).resolve()
    if not source.parent.is_dir():
        gone = f"can't be repeated: the workflow's folder {source.parent}, which its data lies beside, is gone"
        return [Finding("", "measurements", False, gone)]
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="drupe-verify-") as scratch:
        # As it ran: the file may say something else by now.
        workflow = read_workflow(source, registry, allow, {"cache_dir": scratch}, document=manifest["workflow"])
        if workflow.evaluator is None:
            return []
        workflow = with_certification_split(workflow)
        # A store of its own: what is measured here must not come from the run's store.
        store = Store(Path(scratch) / "store")
        engine = Engine(workflow, registry, store, allow=allow, events=events, resolved=manifest.get("resolved"))
        try:
            for name, folder in folders.items():
                target = manifest["targets"][name]
                assert workflow.evaluator is not None
                copy = Path(scratch) / "model"
                shutil.copytree(folder, copy)
                model = Model.from_dir(target["artifact"]["kind"], copy, target["artifact"]["attributes"])
                store.publish(model, copy)
                shutil.rmtree(copy, ignore_errors=True)
                stated = {m: Measurement.from_json(data) for m, data in target["certification"].items()}
                parts = {m.split for m in stated.values() if m.split} or {"evaluation"}
                evaluator = workflow.evaluators[workflow.evaluator]
                found, errors, _ = Measurer(engine).measure(
                    model,
                    evaluator,
                    name,
                    part=parts.pop(),
                    metrics=[m.name for m in evaluator.metrics if not _needs_source(m.type, registry)],
                    limit=samples,
                )
                findings += [Finding(name, m, False, f"can't be measured: {e}") for m, e in errors.items()]
                findings += [_compare(name, stated[m], found[m]) for m in stated if m in found]
        finally:
            engine.close()
    return findings


def _needs_source(metric: str, registry: Registry) -> bool:
    """Whether a metric compares with the source model, which an output folder does not hold."""
    return bool(registry.resolve(registry.get("drupe_metrics", metric)).needs_reference)


def _compare(target: str, stated: Measurement, found: Measurement) -> Finding:
    common = [key for key in found.rows if key in stated.rows]
    interval = stated.interval or (stated.value, stated.value)
    if stated.proportion and common:
        # Exact again on the same samples, or nearly so: numeric kernels may tip a few answers.
        differing = sum(tuple(found.rows[key]) != tuple(stated.rows[key]) for key in common)
        ok = differing <= max(1, len(common) // 10)
        text = f"{len(common) - differing} of {len(common)} samples measured again agree with what was stated"
        return Finding(target, stated.metric, ok, text)
    again = found.interval or (found.value, found.value)
    ok = again[0] <= interval[1] and interval[0] <= again[1]
    text = (
        f"stated {stated.value:.4g} {stated.unit} [{interval[0]:.4g}, {interval[1]:.4g}], "
        f"measured again {found.value:.4g} [{again[0]:.4g}, {again[1]:.4g}]"
    )
    return Finding(target, stated.metric, ok, text)

"""`drupe validate`: check a workflow without running anything."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drupe.core.errors import Fault
    from drupe.core.registry import Registry
    from drupe.core.workflow.model import Workflow
    from drupe.core.workflow.read import Examination

__all__ = ["validate"]

_HEADINGS = {"fault": "faults", "missing": "missing (nothing that is installed provides it)", "needs": "needs"}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["remote-code", "user-scripts", "pickle"]),
    help="Consent to what the workflow asks for; may be given more than once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def validate(file: Path, allow: tuple[str, ...], as_json: bool) -> None:
    """Check the workflow FILE: what is wrong, what no installed plugin provides, and what it needs from you.

    Exit codes: 0 nothing is wrong (what is needed is told); 2 something is wrong or missing.
    """
    from drupe.core.placing import requirement_needs
    from drupe.core.policy import workflow_rules
    from drupe.core.registry import get_registry
    from drupe.core.workflow.read import examine
    from drupe.core.workflow.reading import FILL_IN

    registry = get_registry(workflow_rules(file))
    found = examine(file, registry, frozenset(allow))
    if found.workflow is not None and all(fault.kind == "needs" and fault.hint != FILL_IN for fault in found.faults):
        # Whether the passes fit together can be told once each of them is known and every value is filled in.
        needs = requirement_needs(found.workflow, registry)
        found = replace(found, faults=(*_misfits(found.workflow, registry), *found.faults, *needs))
    bad = bool(found.of_kind("fault") or found.of_kind("missing"))
    if as_json:
        import json

        click.echo(json.dumps(_as_json(file, found, bad), indent=2, ensure_ascii=False))
    else:
        _print(file, found, bad)
    sys.exit(2 if bad else 0)


def _misfits(workflow: Workflow, registry: Registry) -> tuple[Fault, ...]:
    from drupe.core.errors import ConfigError, Fault, PluginError
    from drupe.core.plan import build_plan

    try:
        build_plan(workflow, registry)
    except ConfigError as error:
        return error.faults or (Fault("passes", str(error)),)
    except PluginError as error:
        # What else is wrong is shown beside it.
        return (Fault("passes", str(error)),)
    return ()


def _as_json(file: Path, found: Examination, bad: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"file": str(file), "valid": not bad}
    data["notices"] = [{"path": n.path, "found": n.found, "now": n.now, "why": n.why} for n in found.notices]
    for kind, key in (("fault", "faults"), ("missing", "missing"), ("needs", "needs")):
        data[key] = [
            {"path": f.path, "found": f.found, "expected": f.expected, "hint": f.hint} for f in found.of_kind(kind)
        ]
    return data


def _print(file: Path, found: Examination, bad: bool) -> None:
    if found.notices:
        click.secho(f"notices ({len(found.notices)})", bold=True)
        for notice in found.notices:
            click.echo(f"  {notice}")
    for kind, heading in _HEADINGS.items():
        faults = found.of_kind(kind)
        if faults:
            click.secho(f"{heading} ({len(faults)})", bold=True, fg="yellow" if kind == "needs" else "red")
            for fault in faults:
                click.echo(f"  {fault}")
    if bad:
        click.echo(f"{file}: not valid")
    elif found.of_kind("needs"):
        click.echo(f"{file}: valid; drupe run also needs what is listed above")
    else:
        click.echo(f"{file}: valid")

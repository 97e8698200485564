"""`drupe hosts`: the kinds of hosts that are installed, or the systems of a workflow as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drupe.core.registry import Registry
    from drupe.core.workflow.model import Workflow

__all__ = ["hosts"]

_COMPARED = ("torch", "transformers", "onnxruntime", "onnxruntime-genai")


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--check", "name", help="Check only the system of this name.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def hosts(file: Path | None, name: str | None, as_json: bool) -> None:
    """List the installed kinds of hosts; with a workflow FILE, look at its systems: reachable, devices, versions.

    Exit codes: 0 everything could be reached; 1 something could not; 2 the workflow is wrong.
    """
    from drupe.core.errors import ConfigError
    from drupe.core.registry import get_registry

    if file is None:
        if name is not None:
            raise ConfigError(
                "--check names a system of a workflow; name its file as well: drupe hosts FILE --check NAME"
            )
        rows = [_installed(entry) for entry in get_registry().of("drupe_hosts")]
        _show(rows, as_json, lambda row: f"{row['type']:20} {row['summary']} ({row['provided_by']})")
        return
    from drupe.core.workflow.read import read_workflow

    registry = get_registry()
    workflow = read_workflow(file, registry)
    if name is not None and name not in workflow.systems:
        raise ConfigError(f"no system is named {name!r}; the workflow has {', '.join(workflow.systems)}")
    rows = [_system(workflow, registry, one) for one in workflow.systems if name in (None, one)]
    _show(rows, as_json, _text)
    sys.exit(1 if any(row["faults"] for row in rows) else 0)


def _installed(entry: Any) -> dict[str, Any]:
    return {
        "type": entry.spec.name,
        "summary": entry.spec.summary,
        "provided_by": f"{entry.plugin.distribution} {entry.plugin.version}",
    }


def _system(workflow: Workflow, registry: Registry, name: str) -> dict[str, Any]:
    """Look at one system: what keeps jobs from running there, what it has, and how its versions differ from ours."""
    import importlib.metadata

    import drupe
    from drupe.core.engine import Engine
    from drupe.core.errors import DrupeError
    from drupe.core.store import open_store

    system = workflow.systems[name]
    row: dict[str, Any] = {"name": name, "type": system.type, "faults": [], "devices": [], "versions": {}}
    engine = Engine(workflow, registry, open_store(workflow.cache_dir, workflow.store_url))
    try:
        host = engine.host(name)
        row["faults"] = [str(fault) for fault in host.check()]
        description = host.describe()
    except DrupeError as error:
        # What `check` found is why.
        row["faults"] = row["faults"] or [str(error)]
        return row
    finally:
        engine.close()
    row |= {"devices": [dict(d) for d in description.devices], "python": description.python, "drupe": description.drupe}
    if description.drupe != drupe.__version__:
        row["faults"].append(f"drupe {description.drupe} is installed there, and {drupe.__version__} here")
    for package in _COMPARED:
        there = description.versions.get(package)
        try:
            here: str | None = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            here = None
        row["versions"][package] = {"there": there, "here": here}
    wanted = {accelerator.device for accelerator in system.accelerators}
    present = {device.get("device") for device in description.devices}
    for device in sorted(wanted - present - {"npu"}):
        row["faults"].append(f"the system is to have a {device}, and none is found there")
    return row


def _text(row: dict[str, Any]) -> str:
    lines = [f"{row['name']} ({row['type']}): {'not usable' if row['faults'] else 'ok'}"]
    lines += [f"  fault: {fault}" for fault in row["faults"]]
    for device in row["devices"]:
        sets = f"; {' '.join(device['instruction_sets'])}" if device.get("instruction_sets") else ""
        lines.append(f"  {device['device']}: {device.get('name', '')}, {device.get('cores', 1)} cores{sets}")
    if "python" in row:
        lines.append(f"  python {row['python']}, drupe {row['drupe']}")
    for package, found in row["versions"].items():
        if found["there"] != found["here"]:
            lines.append(f"  {package}: {found['there'] or 'absent'} there, {found['here'] or 'absent'} here")
    return "\n".join(lines)


def _show(rows: list[dict[str, Any]], as_json: bool, line: Any) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        click.echo(line(row))

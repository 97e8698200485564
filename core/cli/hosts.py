"""`drupe hosts`: the kinds of hosts that are installed, or the systems of a workflow as they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drupe.core.engine import Engine
    from drupe.core.registry import Registry
    from drupe.core.workflow.model import Workflow

__all__ = ["hosts"]

_COMPARED = ("torch", "transformers", "onnxruntime", "onnxruntime-genai")


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--check", "name", help="Look only at the system of this name, and run a job there.")
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
    workflow = read_workflow(file, registry, all_systems=True)
    if name is not None and name not in workflow.systems:
        raise ConfigError(f"no system is named {name!r}; the workflow has {', '.join(workflow.systems)}")
    chosen = [one for one in workflow.systems if name in (None, one)]
    rows = [_system(workflow, registry, one, closely=name is not None) for one in chosen]
    _show(rows, as_json, _text)
    sys.exit(1 if any(row["faults"] for row in rows) else 0)


def _installed(entry: Any) -> dict[str, Any]:
    return {
        "type": entry.spec.name,
        "summary": entry.spec.summary,
        "provided_by": f"{entry.plugin.distribution} {entry.plugin.version}",
    }


def _system(workflow: Workflow, registry: Registry, name: str, *, closely: bool) -> dict[str, Any]:
    """Look at one system: what keeps it from its part, what it has, and how its versions differ from ours.

    closely: also run a job there that asks the frameworks what they find.
    """
    import tempfile

    import drupe
    from drupe.core.engine import Engine
    from drupe.core.errors import DrupeError
    from drupe.core.preflight import system_faults
    from drupe.core.store import Store

    row: dict[str, Any] = {"name": name, "type": workflow.systems[name].type, "faults": [], "devices": []}
    known = workflow.cache_dir / "hosts"
    with tempfile.TemporaryDirectory(prefix="drupe-hosts-") as scratch:
        # Looking leaves nothing behind; what hosts keep between runs is used where it is there.
        store = Store(Path(scratch) / "store")
        engine = Engine(workflow, registry, store, state_dir=known if known.is_dir() else None)
        try:
            row["faults"] = [str(fault) for fault in system_faults(engine, name)]
            description = engine.host(name).describe()
            row |= {"devices": [dict(device) for device in description.devices], "python": description.python}
            row |= {"drupe": {"there": description.drupe, "here": drupe.__version__}}
            row["versions"] = _compared(description.versions, _COMPARED)
            row["plugins"] = _compared(description.versions, _plugins())
            if closely:
                row |= _looked(engine, name)
        except DrupeError as error:
            if not row["faults"]:
                row["faults"].append(str(error))
        finally:
            engine.close()
    return row


def _plugins() -> Sequence[str]:
    """The distributions that bring plugins here, besides Drupe itself."""
    import importlib.metadata

    points = importlib.metadata.entry_points(group="drupe")
    return sorted({point.dist.name for point in points if point.dist is not None} - {"drupe"})


def _compared(there: Mapping[str, str], names: Sequence[str]) -> dict[str, dict[str, str | None]]:
    import importlib.metadata

    found: dict[str, dict[str, str | None]] = {}
    for name in names:
        try:
            here: str | None = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            here = None
        found[name] = {"there": there.get(name), "here": here}
    return found


def _looked(engine: Engine, name: str) -> Mapping[str, Any]:
    """Run a job on a system that looks around, and return what it found; a fault where it does not run."""
    from drupe.core.hosts import JobOptions
    from drupe.core.job import Job, write_json

    resources = engine.resources(name)
    job = Job("look", f"look-{name}", "look around", "", {}, resources=resources, **engine.common())
    folder = engine.store.new_job_dir("look")
    (folder / "outputs").mkdir()
    write_json(folder / "job.json", job.to_json(), durable=False)
    result = engine.host(name).run(folder, JobOptions(resources=resources), lambda event: None, lambda: False)
    if result["status"] != "done":
        return {"faults": [f"a job does not run there: {result['error']['message']}"]}
    return {"found": dict(result["report"]), "seconds": result["seconds"]}


def _text(row: dict[str, Any]) -> str:
    lines = [f"{row['name']} ({row['type']}): {'not usable' if row['faults'] else 'ok'}"]
    lines += [f"  fault: {fault}" for fault in row["faults"]]
    for device in row["devices"]:
        sets = f"; {' '.join(device['instruction_sets'])}" if device.get("instruction_sets") else ""
        lines.append(f"  {device['device']}: {device.get('name', '')}, {device.get('cores', 1)} cores{sets}")
    if "python" in row:
        lines.append(f"  python {row['python']}, drupe {row['drupe']['there']}")
    found = row.get("found", {})
    if "execution_providers" in found:
        lines.append(f"  ONNX Runtime: {', '.join(found['execution_providers'])}")
    if "torch_gpus" in found:
        lines.append(f"  torch: {', '.join(found['torch_gpus']) or 'no GPU'}")
    for package, version in {**row.get("versions", {}), **row.get("plugins", {})}.items():
        if version["there"] != version["here"]:
            lines.append(f"  {package}: {version['there'] or 'absent'} there, {version['here'] or 'absent'} here")
    return "\n".join(lines)


def _show(rows: list[dict[str, Any]], as_json: bool, line: Any) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        click.echo(line(row))

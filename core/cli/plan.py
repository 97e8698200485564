"""`drupe plan`: show what a workflow would do, without doing it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drupe.core.counting import Combinations
    from drupe.core.plan import Plan
    from drupe.core.study import Dimension

__all__ = ["plan"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["remote-code", "user-scripts", "pickle"]),
    help="Consent to what the workflow asks for; may be given more than once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(file: Path, allow: tuple[str, ...], as_json: bool) -> None:
    """Show the chains of the workflow FILE, the values it searches, what its goals can show and what it would take.

    Every chain is checked: whether each pass takes what the one before it makes, on every target. The power of a goal
    is the chance that a model without loss is certified; the time is what the same steps took before in this store.
    """
    from drupe.core.certification import part_that_selects, with_certification_split
    from drupe.core.forecast import goal_powers
    from drupe.core.placing import requirement_needs
    from drupe.core.plan import build_plan
    from drupe.core.policy import workflow_rules
    from drupe.core.registry import get_registry
    from drupe.core.workflow.read import read_workflow

    registry = get_registry(workflow_rules(file))
    workflow = read_workflow(file, registry, frozenset(allow))
    built = build_plan(workflow, registry)
    shown = _describe(built)
    split = with_certification_split(workflow)
    part = part_that_selects(built)
    shown["power"] = [{"goal": p.goal, "items": p.items, "text": p.text} for p in goal_powers(split, registry, part)]
    shown["time"] = _time(replace(built, workflow=split), part)
    if as_json:
        import json

        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        _print(shown)
    needs = (*workflow.needs, *requirement_needs(workflow, registry))
    for need in needs:
        click.echo(f"{need.kind}: {need}", err=True)
    if any(need.kind == "fault" for need in needs):
        sys.exit(2)


def _describe(built: Plan) -> dict[str, Any]:
    from drupe.core.counting import count_combinations
    from drupe.core.placing import placed_passes
    from drupe.core.space import space_size
    from drupe.core.target_space import target_space

    workflow = built.workflow
    space = built.space
    hosts = {a.where: on for _, a, _, on in placed_passes(workflow, built.registry)}
    searching = workflow.search is not None and bool(space.dimensions)
    counted = {name: count_combinations(built, name) for name in workflow.targets if space.dimensions}
    trials = _trials(built, counted) if searching else dict.fromkeys(workflow.targets, 1)
    return {
        "name": workflow.name,
        "host": workflow.host,
        "targets": {name: [a.to_json() for a in workflow.systems[name].accelerators] for name in workflow.targets},
        "flows": [
            [
                {
                    "pass": name,
                    "alternatives": [
                        {"type": a.type, "host": ", ".join(hosts[a.where])} for a in workflow.passes[name].alternatives
                    ],
                }
                for name in flow
            ]
            for flow in workflow.flows
        ],
        "dimensions": [
            {"name": d.name, "values": _values(d), "when": {k: list(v) for k, v in d.when.items()}}
            for d in space.dimensions
        ],
        "points": space_size(space),
        "combinations": {name: {**one.to_json(), "trials": trials[name]} for name, one in counted.items()},
        "left_out": [str(left) for name in workflow.targets if searching for left in target_space(built, name)[1]],
        "trials": None if None in trials.values() else max(n for n in trials.values() if n is not None),
        "unmarked": list(workflow.unmarked),
    }


def _time(built: Plan, part: str) -> dict[str, Any]:
    from drupe.core.forecast import forecast_time
    from drupe.core.store import open_store

    workflow = built.workflow
    # A plan makes no store: what a shared one holds beyond this folder is not looked for.
    store = open_store(workflow.cache_dir) if (workflow.cache_dir / "steps").is_dir() else None
    found = forecast_time(built, store, part)
    return {
        "seconds": round(found.seconds, 1) if found.costs else None,
        "steps": found.steps,
        "stored": found.stored,
        "unknown": list(found.unknown),
        "text": found.text,
    }


def _trials(built: Plan, counted: Mapping[str, Combinations]) -> dict[str, int | None]:
    """How many trials a run would do for each target at most; None: until the time is up or the space exhausted."""
    assert built.workflow.search is not None
    limit = built.workflow.search.max_trials
    found = {}
    for name, combinations in counted.items():
        size = combinations.most_trials
        found[name] = min(size, limit) if size is not None and limit is not None else limit or size
    return found


def _values(dimension: Dimension) -> Any:
    over = dimension.over
    listed = getattr(over, "values", None)
    if listed is not None:
        return list(listed)
    return {key: value for key, value in vars(over).items() if value is not None and value is not False}


def _print(shown: dict[str, Any]) -> None:
    click.secho(shown["name"], bold=True)
    for name, accelerators in shown["targets"].items():
        devices = ", ".join(" ".join(filter(None, [a["device"], a["execution_provider"]])) for a in accelerators)
        click.echo(f"target  {name}: {devices}")
    for index, flow in enumerate(shown["flows"]):
        steps = []
        for step in flow:
            types = " | ".join(
                a["type"] + (f" on {a['host']}" if a["host"] != shown["host"] else "") for a in step["alternatives"]
            )
            steps.append(f"{step['pass']} ({types})")
        number = f" {index}" if len(shown["flows"]) > 1 else ""
        click.echo(f"chain{number}   " + " → ".join(steps))
    for dimension in shown["dimensions"]:
        when = "".join(f", where {k} is {' or '.join(map(str, v))}" for k, v in dimension["when"].items())
        click.echo(f"search  {dimension['name']}: {_in_words(dimension['values'])}{when}")
    for left in shown["left_out"]:
        click.echo(f"notice  {left}")
    if shown["dimensions"]:
        click.echo(f"points  {_each({name: _points(one) for name, one in shown['combinations'].items()})}")
        for name, one in shown["combinations"].items():
            for refused in one["refused"]:
                where = f" for the target {name}" if len(shown["targets"]) > 1 else ""
                count = "some" if one["fit"] is None else refused["points"]
                values = ", ".join(f"{key}={value}" for key, value in refused["example"].items())
                click.echo(f"refused {count}, such as {values}{where}: {refused['why']}")
    trials = {name: one["trials"] for name, one in shown["combinations"].items()} or {"": shown["trials"]}
    texts = {name: str(n) if n is not None else "until the time is up" for name, n in trials.items()}
    click.echo(f"trials  {_each(texts)}")
    for power in shown["power"]:
        click.echo(f"power   {power['text']}")
    click.echo(f"time    {shown['time']['text']}")
    if not shown["dimensions"] and shown["unmarked"]:
        click.echo('could be searched, with {"search": […]} or {"search": true}: ' + ", ".join(shown["unmarked"]))


def _points(one: Mapping[str, Any]) -> str:
    if one["points"] is None:
        return "not countable"
    if not one["refused"]:
        return str(one["points"])
    return f"{one['points']}, of which {one['fit']} fit" if one["fit"] is not None else f"{one['points']}, not all fit"


def _each(texts: Mapping[str, str]) -> str:
    """One text where all targets have the same, else each with its target."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name}: {text}" for name, text in texts.items())


def _in_words(values: Any) -> str:
    if isinstance(values, list):
        return ", ".join(map(str, values))
    extra = "".join(f", {key} {value}" for key, value in values.items() if key not in ("low", "high", "log"))
    return f"{values['low']} to {values['high']}{', log' if values.get('log') else ''}{extra}"

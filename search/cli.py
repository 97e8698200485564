"""`drupe search`: look into a study while it runs or afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drupe.core.attributing import Attribution
    from drupe.search.reading import StudyView

__all__ = ["search"]

_WHERE = click.argument("where", default=".")
_STUDY = click.option("--study", help="The study's name or how it begins; the latest without it.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def search() -> None:
    """Look into a study. WHERE is an output folder, a study file, or a storage URL; this folder without it."""


@search.command()
@_WHERE
@_JSON
def status(where: str, as_json: bool) -> None:
    """Show how far each study is."""
    from drupe.search.reading import find_home, read_studies

    shown = [_status(view) for view in read_studies(find_home(where))]
    if as_json:
        _print_json(shown)
        return
    for data in shown:
        counts = ", ".join(
            f"{data[state]} {state.replace('_', ' ')}"
            for state in ("complete", "failed", "pruned", "running", "set_aside")
            if data[state]
        )
        click.echo(f"{data['study']}: {counts or 'no trial yet'}; {data['feasible']} meet the goals")
        winner = "none yet" if data["best"] is None else f"candidate {data['best']}"
        click.echo(f"  best {winner}; {data['seconds']:.0f} s in trials, {data['saved']:.0f} s saved by the store")


@search.command(short_help="Show the best trial that meets the goals.")
@_WHERE
@_STUDY
@_JSON
def best(where: str, study: str | None, as_json: bool) -> None:
    """Show the best trial that meets the goals; without one, the nearest, and exit 3."""
    from drupe.core.errors import NoFeasibleModel
    from drupe.search.explain import binding_goal, relaxations
    from drupe.search.picking import best as pick

    view = _view(where, study)
    number = pick(view.finished, view.objectives)
    if number is None:
        goal = binding_goal(view.finished, view.goals, view.objectives)
        lines = [f"no trial of {view.name} meets the goals"]
        if goal is not None:
            lines.append(f"the goal {goal.metric} {goal.kind} {goal.value:g} blocks most")
        lines += [r.text() for r in relaxations(view.finished, view.goals)[:1]]
        raise NoFeasibleModel("; ".join(lines))
    data = _trial(view, number)
    if as_json:
        _print_json(data)
        return
    click.echo(f"candidate {number} of {view.name}")
    for name, value in data["point"].items():
        click.echo(f"  {name} = {value}")
    for name, text in data["shown"].items():
        click.echo(f"  {name}: {text}")


@search.command(short_help="Show the trials that no other beats.")
@_WHERE
@_STUDY
@_JSON
def pareto(where: str, study: str | None, as_json: bool) -> None:
    """Show the trials that no other beats in every objective; infeasible ones that would be among them are marked."""
    from drupe.search.picking import best as pick
    from drupe.search.picking import front

    view = _view(where, study)
    kept = front(view.finished, view.objectives)
    anyway = [n for n in front(view.finished, view.objectives, only_feasible=False) if n not in kept]
    chosen = pick(view.finished, view.objectives)
    rows = [{**_trial(view, n), "feasible": n in kept, "best": n == chosen} for n in [*kept, *anyway]]
    if as_json:
        _print_json(rows)
        return
    if not rows:
        click.echo(f"{view.name}: no trial was measured yet, or every one failed; `drupe search explain` says why")
    else:
        names = "  ".join(o.metric for o in view.objectives) or "what was measured"
        click.echo(f"candidate  {names} [interval]  parameters; * is best, ! breaks a goal")
    for row in rows:
        mark = "*" if row["best"] else " " if row["feasible"] else "!"
        values = "  ".join(row["shown"].get(o.metric, "") for o in view.objectives) or "  ".join(row["shown"].values())
        tail = (
            ""
            if row["feasible"]
            else "  breaks " + ", ".join(n for n, v in row["violations"].items() if v is None or v > 0)
        )
        click.echo(f"{mark} {row['number']:4}  {values}  {_point(row['point'])}{tail}")


@search.command()
@_WHERE
@_STUDY
@click.option("--format", "kind", type=click.Choice(["csv", "json"]), default="csv", help="csv unless told.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here instead of the terminal.")
def export(where: str, study: str | None, kind: str, output: Path | None) -> None:
    """Write every trial with its point, measurements, slack and state."""
    view = _view(where, study)
    rows = [_trial(view, trial.number) for trial, _ in view.finished]
    text = json.dumps(_plain(rows), indent=2, ensure_ascii=False) + "\n" if kind == "json" else _csv(rows)
    if output is None:
        click.echo(text, nl=False)
        return
    from drupe.core.errors import ConfigError

    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} can't be written: {error.strerror}") from error


@search.command(short_help="Say what mattered, and why each trial lost.")
@_WHERE
@_STUDY
@_JSON
@click.option("--passes", is_flag=True, help="Measure the models between input and winner: what did each pass cost?")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["remote-code", "user-scripts", "pickle"]),
    help="With --passes: consent to what the workflow asks for.",
)
def explain(where: str, study: str | None, as_json: bool, passes: bool, allow: tuple[str, ...]) -> None:
    """Say which parameters mattered, which goal binds, what would have to give, and why each trial lost.

    With --passes WHERE is an output folder; what it measures goes to the workflow's store.
    """
    from drupe.search.explain import binding_goal, importances, relaxations, why_lost
    from drupe.search.picking import best as pick

    view = _view(where, study)
    winner = pick(view.finished, view.objectives)
    metrics = dict.fromkeys([o.metric for o in view.objectives] + [g.metric for g in view.goals])
    mattered = {metric: importances(view.finished, metric) for metric in metrics}
    binding = binding_goal(view.finished, view.goals, view.objectives)
    nearest = relaxations(view.finished, view.goals)[:3]
    lost = why_lost(view.finished, view.goals, view.objectives, winner)
    charged = _attributions(where, allow) if passes else []
    if as_json:
        _print_json(
            {
                "study": view.name,
                "best": winner,
                "importance": mattered,
                "binding": None if binding is None else [binding.metric, binding.kind, binding.value],
                "relaxations": [{"number": r.number, "limits": r.limits} for r in nearest],
                "lost": lost,
                **({"passes": [_attribution(one) for one in charged]} if passes else {}),
            }
        )
        return
    click.echo(f"{view.name}: " + (f"candidate {winner} is best" if winner is not None else "nothing meets the goals"))
    for metric, shares in mattered.items():
        named = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
        click.echo(f"{metric} depends on: {named or 'no parameter by itself, as far as these trials show'}")
    if binding is not None:
        click.echo(f"the goal that binds: {binding.metric} {binding.kind} {binding.value:g}")
    for relaxation in nearest if winner is None else nearest[:1]:
        click.echo(relaxation.text())
    for number, reason in lost.items():
        click.echo(f"candidate {number}: {reason}")
    for one in charged:
        click.echo(f"{one.metric} along the chain of candidate {one.candidate} on {one.target}:")
        for change in one.changes:
            click.echo(f"  {change.text()}")
        if one.skipped:
            click.echo(f"  no runtime here serves what these made, so the next is charged: {', '.join(one.skipped)}")


def _attributions(where: str, allow: tuple[str, ...]) -> list[Attribution]:
    from drupe.core.attributing import attribute
    from drupe.core.policy import output_rules
    from drupe.core.registry import get_registry

    output = Path(where).resolve()
    return attribute(output, get_registry(output_rules(output)), allow=frozenset(allow))


def _attribution(one: Attribution) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(one)


@search.command()
@_WHERE
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True)
def dashboard(where: str, host: str, port: int) -> None:
    """Open optuna-dashboard on the study."""
    from drupe.core.errors import ConfigError
    from drupe.search.reading import find_home

    home = find_home(where)
    try:
        from optuna_dashboard import run_server
    except ImportError as error:
        raise ConfigError("the dashboard needs the package optuna-dashboard: pip install 'drupe[dashboard]'") from error
    click.echo(f"http://{host}:{port} shows {home.url}; stop with Ctrl-C")
    run_server(home.storage, host=host, port=port)


def _view(where: str, study: str | None) -> StudyView:
    from drupe.search.reading import find_home, read_study

    return read_study(find_home(where), study)


def _status(view: StudyView) -> dict[str, Any]:
    from drupe.search.picking import best as pick
    from drupe.search.picking import feasible

    states = [outcome.state for _, outcome in view.finished]
    return {
        "study": view.name,
        **{state: states.count(state) for state in ("complete", "failed", "pruned")},
        "running": len(view.running),
        "set_aside": len(view.set_aside),
        "feasible": sum(feasible(outcome, view.objectives) for _, outcome in view.finished),
        "best": pick(view.finished, view.objectives),
        "seconds": view.seconds,
        "saved": sum(outcome.saved for _, outcome in view.finished),
    }


def _trial(view: StudyView, number: int) -> dict[str, Any]:
    from drupe.search.picking import feasible

    trial, outcome = view.trial(number), view.outcome(number)
    return {
        "number": number,
        "state": outcome.state,
        "feasible": feasible(outcome, view.objectives),
        "point": dict(trial.point),
        "measurements": {name: m.to_json() for name, m in outcome.measurements.items()},
        "violations": dict(outcome.violations),
        "error": outcome.error,
        "cost": outcome.cost,
        "saved": outcome.saved,
        "shown": {name: _value(m) for name, m in outcome.measurements.items()},
    }


def _value(measurement: Any) -> str:
    text = f"{measurement.value:.4g} {measurement.unit}".rstrip()
    if measurement.interval:
        text += f" [{measurement.interval[0]:.4g}, {measurement.interval[1]:.4g}]"
    return text


def _point(point: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items())


def _csv(rows: list[dict[str, Any]]) -> str:
    import csv
    import io

    names = list(dict.fromkeys(name for row in rows for name in row["point"]))
    metrics = list(dict.fromkeys(name for row in rows for name in row["measurements"]))
    slacks = list(dict.fromkeys(name for row in rows for name in row["violations"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["number", "state", "feasible", *names, *metrics, *(f"slack {s}" for s in slacks), "cost", "saved", "error"]
    )
    for row in rows:
        values = [row["measurements"].get(m, {}).get("value", "") for m in metrics]
        slack = [row["violations"].get(s, "") for s in slacks]
        point = [row["point"].get(n, "") for n in names]
        writer.writerow(
            [
                row["number"],
                row["state"],
                row["feasible"],
                *point,
                *values,
                *slack,
                row["cost"],
                row["saved"],
                row["error"] or "",
            ]
        )
    return out.getvalue()


def _plain(data: Any) -> Any:
    """Return data with what JSON lacks (infinity: not measured) as null, and without texts made for the terminal."""
    import math

    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items() if key != "shown"}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _print_json(data: Any) -> None:
    click.echo(json.dumps(_plain(data), indent=2, ensure_ascii=False))

"""`drupe rehearse`: run the whole chain on a small stand-in of the model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["rehearse"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--allow", multiple=True, type=click.Choice(["remote-code", "user-scripts", "pickle"]))
def rehearse(file: Path, allow: tuple[str, ...]) -> None:
    """Run every step and metric of the workflow FILE on a two-layer random model, in about a minute.

    Exit codes: 0 every step and metric works; 1 something does not; 2 the workflow is wrong.
    """
    from drupe.core.cli.progress import make_reporter
    from drupe.core.cli.run import stoppable
    from drupe.core.errors import ConfigError
    from drupe.core.policy import workflow_rules
    from drupe.core.registry import get_registry
    from drupe.core.rehearsal import rehearse as run_rehearsal
    from drupe.core.workflow.read import read_workflow

    consents = frozenset(allow)
    workflow = read_workflow(file, get_registry(workflow_rules(file)), allow=consents)
    if workflow.needs:
        raise ConfigError(faults=workflow.needs)
    reporter = make_reporter()
    with stoppable() as stop:
        try:
            outcome = run_rehearsal(workflow, get_registry(), allow=consents, events=reporter, cancelled=stop.is_set)
        finally:
            reporter.close()
    for one in outcome:
        point = ", ".join(f"{name}={value}" for name, value in one.point.items()) or "as written"
        click.echo(f"{'FAIL' if one.errors else 'ok  '} {one.target}: {point} ({one.seconds:.1f} s)")
        for error in one.errors:
            click.echo(f"     {error}")
    sys.exit(1 if any(one.errors for one in outcome) else 0)

"""`drupe verify`: check an output folder after the fact."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

__all__ = ["verify"]


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--samples", default=20, show_default=True, help="How many samples of each metric to measure again.")
@click.option("--allow", multiple=True, type=click.Choice(["remote-code", "user-scripts", "pickle"]))
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(output: Path, samples: int, allow: tuple[str, ...], as_json: bool) -> None:
    """Check the output folder OUTPUT: files by digest, then measurements on a sample.

    Exit codes: 0 everything holds; 1 something does not; 2 OUTPUT is no output folder.
    """
    from drupe.core.registry import get_registry
    from drupe.core.verify import verify_output

    findings = verify_output(output.resolve(), get_registry(_rules(output)), samples=samples, allow=frozenset(allow))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            where = f"{finding.target}: " if finding.target else ""
            click.echo(f"{'ok   ' if finding.ok else 'FAIL '} {where}{finding.what}: {finding.text}")
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


def _rules(output: Path) -> Mapping[str, Any]:
    """The plugin rules of the workflow that made an output folder; none where the manifest names no workflow."""
    from drupe.core.policy import workflow_rules
    from drupe.core.results import MANIFEST

    try:
        named = json.loads((output / MANIFEST).read_text(encoding="utf-8"))["workflow_file"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    workflow = output / str(named)
    return workflow_rules(workflow) if workflow.is_file() else {}

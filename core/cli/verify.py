"""`drupe verify`: check an output folder after the fact."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

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
    from drupe.core.policy import output_rules
    from drupe.core.registry import get_registry
    from drupe.core.verify import verify_output

    findings = verify_output(
        output.resolve(), get_registry(output_rules(output)), samples=samples, allow=frozenset(allow)
    )
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            where = f"{finding.target}: " if finding.target else ""
            click.echo(f"{'ok   ' if finding.ok else 'FAIL '} {where}{finding.what}: {finding.text}")
    sys.exit(0 if all(finding.ok for finding in findings) else 1)

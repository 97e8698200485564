"""`drupe schema`: the JSON Schema of workflow files."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["schema"]


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Write it into this file instead of printing it.")
def schema(output: Path | None) -> None:
    """Print the JSON Schema of workflow files as the installed plugins make it, for editors.

    In VS Code, name the file in a workflow's "$schema" key, or in a YAML file's first line:
    # yaml-language-server: $schema=workflow-schema.json
    """
    from drupe.core.errors import ConfigError
    from drupe.core.registry import get_registry
    from drupe.core.schema import workflow_schema

    text = json.dumps(workflow_schema(get_registry()), indent=2, ensure_ascii=False)
    if output is None:
        click.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} can't be written: {error.strerror}") from error

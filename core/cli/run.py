"""`drupe run`: run a workflow into its output folder."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

__all__ = ["run", "stoppable"]


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--config", "--run-config", "config", type=click.Path(path_type=Path), help="The workflow file (Olive's spelling)."
)
@click.option(
    "--output-dir",
    "--output_path",
    "-o",
    "output_dir",
    type=click.Path(path_type=Path),
    help="Write here instead of the file's output_dir.",
)
@click.option("--cache-dir", help="Keep the store here instead of the file's cache_dir; a folder or a URL.")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["remote-code", "user-scripts", "pickle"]),
    help="Consent to what the workflow asks for; may be given more than once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest instead of progress and table.")
@click.option("--quiet", is_flag=True, help="Print warnings and the final table only.")
def run(
    file: Path | None,
    config: Path | None,
    output_dir: Path | None,
    cache_dir: str | None,
    allow: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the workflow FILE; the same command goes on where a run was stopped.

    Exit codes: 0 done; 1 a step or host failed; 2 the workflow is wrong; 3 nothing met the goals; 130 interrupted.
    """
    from drupe.core.cli.progress import final_table, make_reporter
    from drupe.core.driver import Driver
    from drupe.core.errors import ConfigError
    from drupe.core.policy import workflow_rules
    from drupe.core.registry import get_registry
    from drupe.core.results import MANIFEST
    from drupe.core.workflow.read import read_workflow

    path = file or config
    if path is None or (file is not None and config is not None):
        raise ConfigError("name one workflow file: drupe run FILE")
    consents = frozenset(allow)
    overrides = {"output_dir": str(output_dir.absolute())} if output_dir else {}
    if cache_dir:
        overrides["cache_dir"] = cache_dir if "://" in cache_dir else str(Path(cache_dir).absolute())
    workflow = read_workflow(path, get_registry(workflow_rules(path)), allow=consents, overrides=overrides)
    for notice in workflow.notices:
        click.echo(f"notice: {notice}", err=True)
    if workflow.needs:
        raise ConfigError(faults=workflow.needs)
    with stoppable() as stop, _log_to(workflow.output_dir / "logs", workflow.options):
        reporter = make_reporter(quiet=quiet or as_json)
        driver = Driver(workflow, get_registry(), allow=consents, events=reporter, cancelled=stop.is_set)
        try:
            result = driver.run()
        finally:
            reporter.close()
    if as_json:
        click.echo((result.output_dir / MANIFEST).read_text(encoding="utf-8"))
    else:
        final_table(result)
    sys.exit(result.exit_code)


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop at the next safe point; the second one ends at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        click.echo("stopping; what is finished is kept (Ctrl-C again ends at once)", err=True)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _log_to(folder: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Send the log of this run to a file in its output folder, from the workflow's log_severity_level upwards."""
    from drupe.core.errors import ConfigError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / "drupe.log", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the output folder {folder.parent} can't be written: {error.strerror}; name another with --output-dir"
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("drupe")
    logger.addHandler(handler)
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    logger.setLevel(levels[options.get("log_severity_level", 1)])
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()

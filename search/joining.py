"""`drupe worker`: run trials of a study that another process drives, here or on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drupe.core.registry import Registry
    from drupe.core.workflow.model import Workflow

__all__ = ["worker"]


@click.command()
@click.argument("storage_url")
@click.argument("study")
@click.option("--cache-dir", help="The store, where it has another name here than at the driver; a folder or a URL.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the files lie here that the workflow names by relative paths; the driver's folder without it.",
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["remote-code", "user-scripts", "pickle"]),
    help="Consent to what the workflow asks for; may be given more than once.",
)
@click.option("--quiet", is_flag=True, help="Print warnings and the last line only.")
def worker(
    storage_url: str, study: str, cache_dir: str | None, folder: Path | None, allow: tuple[str, ...], quiet: bool
) -> None:
    """Run trials of STUDY, within its budget, until it is complete.

    STORAGE_URL is what the study's driver has as `storage`, its output folder, or its journal file. STUDY is the
    study's name, or how it begins: `drupe search status` tells it.
    """
    from drupe.core.cli.progress import make_reporter
    from drupe.core.cli.run import stoppable
    from drupe.core.driver import Driver
    from drupe.core.errors import HostError
    from drupe.core.joining import offered_model
    from drupe.core.registry import get_registry
    from drupe.search.reading import find_home, read_work

    home = find_home(storage_url)
    name, work = read_work(home, study)
    home.storage.remove_session()
    consents = frozenset(allow)
    storage = storage_url if "://" in storage_url else home.url
    registry = get_registry(work["document"].get("plugins") or {})
    workflow = _workflow(work, storage, cache_dir, folder, registry, consents)
    with stoppable() as stop:
        reporter = make_reporter(quiet=quiet)
        driver = Driver(
            workflow,
            registry,
            allow=consents,
            events=reporter,
            cancelled=stop.is_set,
            resolved=work.get("resolved"),
        )
        try:
            source = offered_model(work, driver.store.has, workflow.store_url or str(workflow.cache_dir))
            done = driver.assist(work["target"], source, name)
        finally:
            reporter.close()
    ran = f"{len(done.candidates)} of its trials were run here"
    if done.set_aside:
        count, last = len(done.set_aside), done.set_aside[-1]
        raise HostError(
            f"{name}: {ran}, {count} could not be and are left to others; last: {last['error']}", host=last["host"]
        )
    click.echo(f"{name} is complete; {ran}")


def _workflow(
    work: Mapping[str, Any],
    storage: str,
    cache_dir: str | None,
    folder: Path | None,
    registry: Registry,
    consents: frozenset[str],
) -> Workflow:
    """Read the driver's workflow as it is to be run here; what it writes besides the store stays below the store."""
    from drupe.core.errors import ConfigError
    from drupe.core.workflow.read import read_workflow

    path = Path(work["file"])
    if folder is not None:
        path = folder.absolute() / path.name
    overrides = {}
    if cache_dir is not None:
        overrides["cache_dir"] = cache_dir if "://" in cache_dir else str(Path(cache_dir).absolute())
    workflow = read_workflow(path, registry, consents, overrides, document=work["document"])
    if workflow.needs:
        raise ConfigError(faults=workflow.needs)
    assert workflow.search is not None, "only a search can be joined"
    return replace(
        workflow,
        search=replace(workflow.search, storage=storage),
        output_dir=workflow.cache_dir / "workers",
    )

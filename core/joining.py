"""What a process needs to know to help with a study that another one drives, and where it finds that: in the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.study import Study
from drupe.core.trials import TrialRunner
from drupe.core.workflow.model import Workflow

__all__ = ["check_same", "offer", "offered_model"]

SCHEMA = 1


def offer(study: Study, workflow: Workflow, runner: TrialRunner) -> None:
    """Leave in a study what a process that joins it needs: the workflow, the input model's digests, the target.

    Does nothing where the study can't be joined. No secrets are in it: a workflow only names them.
    """
    import drupe

    # Whoever joins has the storage's URL, password and all.
    document = {**workflow.document, "cache_dir": workflow.store_url or str(workflow.cache_dir)}
    strategy = document.get("search_strategy")
    if isinstance(strategy, Mapping):
        document["search_strategy"] = {key: value for key, value in strategy.items() if key != "storage"}
    keep: Callable[[Mapping[str, Any]], None] | None = getattr(study, "keep_work", None)
    if keep is not None:
        keep(
            {
                "schema": SCHEMA,
                "drupe": drupe.__version__,
                "file": str(workflow.path),
                "document": document,
                "target": runner.target,
                "input": runner.input_model.to_json(),
                "resolved": runner.engine.resolved(),
            }
        )


def offered_model(work: Mapping[str, Any], has: Callable[[str], bool], store: str) -> Model:
    """Return the input model of an offer. has: whether the store holds a digest; store: how to name it in a message.

    Raises ConfigError where the offer is another version's or the store is not the driver's.
    """
    import drupe

    if work.get("schema") != SCHEMA or work.get("drupe") != drupe.__version__:
        raise ConfigError(
            f"the study is driven by drupe {work.get('drupe', '?')} and this is {drupe.__version__}; "
            "install the same version"
        )
    model = Model.from_json(work["input"])
    if not all(has(digest) for digest in model.files.values()):
        raise ConfigError(
            f"the study's input model is not in the store {store}; name the one that its driver uses with --cache-dir "
            "(a folder both see, or a URL)"
        )
    return model


def check_same(wanted: str, here: str) -> None:
    """Raise ConfigError unless what would be searched here is the study that was named."""
    if wanted != here:
        raise ConfigError(
            f"here the study {wanted} would be {here}: the data or scripts of its workflow differ between this machine "
            "and its driver's; bring the same files, and name their folder with --folder"
        )

"""Finds tasks of MTEB, its own and a user's, and has a model do them."""

from __future__ import annotations

import contextlib
import difflib
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mteb
from mteb.abstasks.abstask import AbsTask

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, DrupeError, EvaluationError
from drupe.core.user_scripts import user_module

if TYPE_CHECKING:
    from drupe.plugins.metrics.mteb_evaluator import MTEBEvaluatorConfig
    from drupe.plugins.metrics.mteb_model import SessionEncoder

__all__ = ["load_tasks", "scores_of"]


def load_tasks(config: MTEBEvaluatorConfig, context: JobContext) -> list[Any]:
    """Return the tasks, each with its data at hand.

    Raises ConfigError for an unknown task, split or subset, and EvaluationError for data that can't be had.
    """
    own = _own_tasks(config, context)
    tasks = [_filtered(_task(name, own), config) for name in config.tasks]
    for done, task in enumerate(tasks):
        name = task.metadata.name
        context.progress(done, len(tasks), f"loading {name}")
        if "text" not in task.modalities or len(task.modalities) > 1:
            raise EvaluationError(f"MTEBEvaluator: task {name} is of {', '.join(task.modalities)}; texts are embedded")
        try:
            task.load_data()
        except Exception as error:  # whatever the data sets' libraries raise
            data = task.metadata.dataset.get("path", "of its own")
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EvaluationError(
                f"MTEBEvaluator: task {name} needs the data set {data}, which can't be had here: {first[:300]}"
            ) from error
    return tasks


def scores_of(
    task: Any, encoder: SessionEncoder, config: MTEBEvaluatorConfig
) -> tuple[dict[str, float], Mapping[str, Any]]:
    """Return a task's values by name, and MTEB's own scores as JSON data. Raises EvaluationError."""
    try:
        # What it prints is no result.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = mteb.evaluate(
                encoder,
                task,
                co2_tracker=False,
                cache=None,
                overwrite_strategy="always",
                show_progress_bar=False,
                encode_kwargs={"batch_size": config.batch_size, "show_progress_bar": False},
            )
    except DrupeError:
        raise
    except Exception as error:  # whatever a task's own code raises
        raise EvaluationError(
            f"mteb could not evaluate {task.metadata.name}: {type(error).__name__}: {error}"
        ) from error
    (result,) = found.task_results
    told = {"dataset_revision": str(result.dataset_revision), "scores": _without_nan(result.scores)}
    return _values(result.scores), told


def _values(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Return the means over splits and subsets of every score that each of them has, then each subset's main score."""
    parts = {
        f"{split}_{entry['hf_subset']}": {name: float(value) for name, value in entry.items() if _is_score(value)}
        for split, entries in scores.items()
        for entry in entries
    }
    first, *others = parts.values()
    shared = [name for name in first if all(name in other for other in others)]
    shared.sort(key=lambda name: name != "main_score")
    means = {name: math.fsum(part[name] for part in parts.values()) / len(parts) for name in shared}
    return {**means, **{name: part["main_score"] for name, part in parts.items() if "main_score" in part}}


def _without_nan(value: Any) -> Any:
    """Return scores as JSON data, with null for one that is not a number."""
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if hasattr(value, "__float__"):
        return value if isinstance(value, (bool, int)) else float(value) if math.isfinite(float(value)) else None
    return str(value)


def _is_score(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__float__") and math.isfinite(float(value))


def _own_tasks(config: MTEBEvaluatorConfig, context: JobContext) -> dict[str, Any]:
    if config.user_script is None:
        return {}
    module = user_module(config.user_script, context, what="the tasks", folder=config.script_dir)
    found = {}
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, AbsTask) and value.__module__ == module.__name__:
            metadata = getattr(value, "metadata", None)
            if metadata is not None:
                found[str(metadata.name)] = value
    if not found:
        raise ConfigError(f"MTEBEvaluator: user_script {config.user_script} defines no class on mteb's task classes")
    return found


def _task(name: str, own: Mapping[str, Any]) -> Any:
    if name in own:
        return own[name]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of renamed tasks, which are found all the same
            return mteb.get_task(name)
    except KeyError as error:
        from mteb.get_tasks import _TASKS_REGISTRY

        known = [*own, *_TASKS_REGISTRY]
        near = difflib.get_close_matches(name, known, 3)
        hint = f"nearest: {', '.join(near)}" if near else f"it knows {len(known)} names"
        raise ConfigError(f"MTEBEvaluator: tasks: {name!r} is no task of mteb; {hint}") from error


def _filtered(task: Any, config: MTEBEvaluatorConfig) -> Any:
    metadata = task.metadata
    for what, wanted, there in (
        ("eval_splits", config.eval_splits, list(metadata.eval_splits)),
        ("eval_subsets", config.eval_subsets, list(metadata.hf_subsets)),
    ):
        if wanted and not set(wanted) & set(there):
            raise ConfigError(
                f"MTEBEvaluator: {what}: task {metadata.name} has none of {', '.join(wanted)}; it has "
                f"{', '.join(there)}"
            )
    if config.eval_splits:
        task.filter_eval_splits([split for split in metadata.eval_splits if split in config.eval_splits])
    if config.eval_subsets:
        task.filter_languages(None, hf_subsets=[name for name in metadata.hf_subsets if name in config.eval_subsets])
    return task

"""Loads tasks of lm-evaluation-harness: its own and a user's, with consent where a task brings code along."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, DrupeError, EvaluationError

__all__ = ["INSTALL", "load_tasks", "require_harness", "sandboxed_templates"]

INSTALL = "pip install 'drupe[lm-eval]'"


def require_harness() -> None:
    """Raises EvaluationError where the package is not installed."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise EvaluationError(f"LMEvaluator needs lm-eval>=0.4.9, which is not installed; {INSTALL}")


def load_tasks(names: Sequence[str], folder: Path | None, context: JobContext) -> dict[str, Any]:
    """Return {"tasks": {name: Task}, "groups": {name: Group}} with the data of every task at hand.

    folder: the user's YAML files; relative data files in them are looked for there. Raises ConfigError for an unknown
    task, for code without consent and for a file that can't be read, and EvaluationError for data that can't be had.
    """
    from lm_eval.tasks import TaskManager

    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"LMEvaluator: include_path {folder} is no folder; it should hold the tasks' YAML files")
        for path in sorted(folder.glob("**/*.yaml")):
            _check_code(path, context, set())
    # The harness's own tasks are many thousand files: they are read once a process, and not where the user's do.
    if folder is None:
        manager = _own_tasks()
    else:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if not all(_complete(name, manager.task_index) for name in names):
            manager = TaskManager(include_path=str(folder))
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"nearest: {', '.join(near)}" if near else f"it knows {len(manager.all_tasks)} names"
            where = f" nor in {folder.name}" if folder is not None else ""
            raise ConfigError(f"LMEvaluator: tasks: {name!r} is no task, group or tag of lm-eval{where}; {hint}")
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    with contextlib.chdir(folder) if folder is not None else contextlib.nullcontext():
        for done, name in enumerate(names):
            context.progress(done, len(names), f"loading {name}")
            try:
                found = manager.load([name])
            except DrupeError:
                raise
            except Exception as error:  # whatever a task's file and the data sets' libraries raise
                raise EvaluationError(_why(name, manager.task_index, error)) from error
            loaded["tasks"] |= found["tasks"]
            loaded["groups"] |= found.get("groups", {})
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or task.get_config("unsafe_code"):
            context.require_consent("user-scripts", f"task {name}, which runs code that the model writes,")
        if getattr(task, "MULTIMODAL", False):
            raise EvaluationError(f"LMEvaluator: task {name} asks about pictures or sound; sessions take text")
    return loaded


@contextlib.contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Render the tasks' templates without access to Python's insides: a task's file needs no consent for its texts."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    usual = utils.env
    safe = ImmutableSandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    safe.filters |= usual.filters
    utils.env = safe
    try:
        yield
    finally:
        utils.env = usual


def _check_code(path: Path, context: JobContext, seen: set[Path]) -> None:
    """Ask for consent where a task's file, or one that it includes, names Python code. Nothing of it is run."""
    import yaml

    if path in seen:
        return
    seen.add(path)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"LMEvaluator: include_path: {path.name} can't be read: {error}") from error
    for key, node in _nodes(root):
        if node.tag.startswith("!"):
            context.require_consent("user-scripts", f"running {node.tag} {node.value} of {path.name}")
        if isinstance(node, yaml.ScalarNode) and key == "metric" and node.value not in _known_metrics():
            context.require_consent("user-scripts", f"loading the metric {node.value} of {path.name}")
        if isinstance(node, yaml.ScalarNode) and key == "hf_evaluate" and node.value.lower() in ("true", "yes", "on"):
            context.require_consent("user-scripts", f"loading a metric of Hugging Face's evaluate for {path.name}")
        if key == "include":
            parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
            for part in parts:
                inner = (path.parent / str(part.value)).resolve()
                if inner.is_file():
                    _check_code(inner, context, seen)


def _nodes(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Return every node of a YAML document with the key that it stands under."""
    import yaml

    if node is None:
        return
    yield key, node
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _nodes(name)
            yield from _nodes(value, str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _nodes(value, key)


def _known_metrics() -> frozenset[str]:
    import lm_eval.api.metrics  # noqa: F401  (registers them)
    from lm_eval.api.registry import METRIC_REGISTRY

    return frozenset(METRIC_REGISTRY.keys() if hasattr(METRIC_REGISTRY, "keys") else METRIC_REGISTRY)


@cache
def _own_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _complete(name: Any, index: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether a task, or all the tasks of a group, are in the index."""
    entry = index.get(name) if isinstance(name, str) else None
    if entry is None or depth > 8:
        return False
    members = (entry.cfg or {}).get("task")
    return all(_complete(m, index, depth + 1) for m in members) if isinstance(members, list) else True


def _why(name: str, index: Mapping[str, Any], error: Exception) -> str:
    """Say why a task could not be loaded; where its data can't be had, which data that is."""
    data = _data_of(name, index)
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if data is not None and _is_of_data(error):
        return (
            f"LMEvaluator: task {name} needs the data set {data}, which can't be had here ({text}); reach the hub once "
            f"from this machine, so that the data is in its cache, or give a task with local files by include_path"
        )
    if isinstance(error, StopIteration):
        return f"LMEvaluator: task {name} has no documents; its data files, or its split, may be empty"
    return (
        f"LMEvaluator: task {name} can't be loaded: {type(error).__name__}: {text}; its metric_list, doc_to_text, "
        "doc_to_choice or doc_to_target may not fit the library or the data"
    )


def _is_of_data(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__module__.partition(".")[0] in ("datasets", "huggingface_hub", "requests", "httpx", "fsspec"):
            return True
        if isinstance(error, (OSError, ConnectionError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _data_of(name: str, index: Mapping[str, Any], depth: int = 0) -> str | None:
    """Return the data set that a task, or the first task of a group or tag, names."""
    entry = index.get(name)
    if entry is None or depth > 8:
        return None
    config: Mapping[str, Any] = entry.cfg or {}
    if isinstance(config.get("dataset_path"), str):
        part = config.get("dataset_name")
        return f"{config['dataset_path']} ({part})" if part else str(config["dataset_path"])
    inner = config.get("task")
    children = [*(inner if isinstance(inner, list) else ()), *sorted(entry.tags if not config else ())]
    for child in children:
        title = child.get("task") or child.get("group") if isinstance(child, Mapping) else child
        found = _data_of(str(title), index, depth + 1)
        if found is not None:
            return found
    return None

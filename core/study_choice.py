"""Which installed study searches, and whether it can search what a workflow asks for: asked before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drupe.core.errors import ConfigError
from drupe.core.plan import Plan
from drupe.core.registry import Registry

__all__ = ["check_search", "new_study"]


def new_study(registry: Registry) -> Any:
    """Return a study of the installed plugin with the highest priority. Raises ConfigError where there is none."""
    entries = registry.of("drupe_studies")
    if not entries:
        raise ConfigError("the workflow searches, and no installed plugin provides a study")
    best = max(entries, key=lambda entry: getattr(entry.spec, "priority", 0))
    return registry.resolve(best)(best.spec)


def check_search(plan: Plan) -> None:
    """Raise ConfigError where the workflow's search can't be done: a search that has no end, options that the sampler
    does not take. A study that has no `check` is taken to do any."""
    workflow = plan.workflow
    if workflow.search is None or not plan.space.dimensions:
        return
    evaluator = workflow.evaluators.get(workflow.evaluator or "")
    check: Callable[..., None] | None = getattr(new_study(plan.registry), "check", None)
    if check is not None:
        check(plan.space, evaluator.objectives if evaluator else (), workflow.search)

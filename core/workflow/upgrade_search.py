"""Upgrades a `search_strategy` of an older form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.core.workflow.findings import Findings, join, shown

__all__ = ["upgrade_search_strategy"]

_SAMPLERS = {"exhaustive": "grid", "sequential": "grid"}


def upgrade_search_strategy(document: dict[str, Any], origins: Mapping[str, str], findings: Findings) -> None:
    """Bring `search_strategy` (and the top-level `output_model_num`) to the current form, in place."""
    path, number = "search_strategy", "output_model_num"
    if document.pop(number, None) is not None:
        _no_effect(origins.get(number, number), number, "the best model per target is handed out", findings)
    strategy = document.get(path)
    if not isinstance(strategy, dict):
        return
    strategy = dict(strategy)
    if "search_algorithm" in strategy:
        findings.notice(join(path, "search_algorithm"), "search_algorithm", "sampler")
        strategy.setdefault("sampler", strategy.pop("search_algorithm"))
    inner = strategy.pop("search_algorithm_config", None)
    if inner is not None and not isinstance(inner, dict):
        findings.fault(join(path, "search_algorithm_config"), shown(inner), "a mapping of the sampler's options")
    for key, value in (inner or {}).items() if isinstance(inner, dict) or inner is None else ():
        now = "max_samples" if key == "num_samples" else str(key)
        findings.notice(join(path, f"search_algorithm_config.{key}"), f"search_algorithm_config.{key}", now)
        strategy.setdefault(now, value)
    sampler = strategy.get("sampler")
    if isinstance(sampler, str) and sampler.lower() in _SAMPLERS:
        strategy["sampler"] = _SAMPLERS[sampler.lower()]
        findings.notice(join(path, "sampler"), sampler, strategy["sampler"])
    _budget(strategy, path, findings)
    order = strategy.pop("execution_order", None)
    if order == "pass-by-pass":
        reason = "all passes are searched together; what trials share is done once"
        _no_effect(join(path, "execution_order"), "execution_order: pass-by-pass", reason, findings)
    elif order not in (None, "joint"):
        findings.fault(join(path, "execution_order"), repr(order), "joint or pass-by-pass")
    if strategy.pop("include_pass_params", None) is not None:
        reason = "exactly the marked values are searched"
        _no_effect(join(path, "include_pass_params"), "include_pass_params", reason, findings)
    if strategy.pop("output_model_num", None) is not None:
        reason = "the best model per target is handed out, the others stay in the store"
        _no_effect(join(path, "output_model_num"), "output_model_num", reason, findings)
    document[path] = strategy


def _budget(strategy: dict[str, Any], path: str, findings: Findings) -> None:
    given = [key for key in ("max_samples", "num_samples", "max_iter", "max_trials") if strategy.get(key) is not None]
    values = [strategy[key] for key in given]
    for key in ("max_samples", "num_samples", "max_iter"):
        if key in strategy:
            findings.notice(join(path, key), key, "max_trials")
            del strategy[key]
    if values:
        numbers = [value for value in values if isinstance(value, int)]
        strategy["max_trials"] = min(numbers) if len(numbers) == len(values) else values[0]


def _no_effect(path: str, found: str, reason: str, findings: Findings) -> None:
    findings.notice(path, found, "without effect", reason)

"""Several targets: the next one's study starts from the best points of the last one's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drupe.core.study import Point, Study, StudySettings

__all__ = ["Findings"]

_MOST = 5


class Findings:
    """The best points of the target before, for the next target's study. They are part of its budget, not beyond it."""

    def __init__(self, events: Callable[[Mapping[str, Any]], None]) -> None:
        self._events = events
        self._origin = ""
        self._points: Sequence[Point] = ()

    def give(self, study: Study, target: str) -> Mapping[str, Any]:
        """Have a study that has no trial yet try the points first. Returns what the manifest says of it."""
        start = getattr(study, "warm_start", None)
        count = start(self._points) if start is not None and self._points else 0
        if not count:
            return {}
        self._events({"event": "warm start", "target": target, "origin": self._origin, "points": count})
        return {"target": self._origin, "points": count}

    def take(self, study: Study, target: str, settings: StudySettings | None) -> None:
        """Keep the best points of a study that ended: at most a quarter of the next one's trials."""
        leading = getattr(study, "leading", None)
        if leading is None or settings is None:
            return
        count = min(_MOST, max(1, settings.max_trials // 4)) if settings.max_trials else _MOST
        self._origin, self._points = target, leading(count)

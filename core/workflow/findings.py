"""Collects what is found while reading a workflow: faults, what is missing, what is needed, and notices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from drupe.core.errors import Fault
from drupe.core.workflow.model import Notice

__all__ = ["Findings", "join", "listed", "nearest", "shown"]


@dataclass
class Findings:
    """Everything found so far; reading goes on after a fault so that all are told at once."""

    faults: list[Fault] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def fault(self, path: str, found: str, expected: str = "", hint: str = "", kind: str = "fault") -> None:
        """Record one thing that is wrong (or "missing", or "needs"), once."""
        fault = Fault(path, found, expected, hint, kind)
        if fault not in self.faults:
            self.faults.append(fault)

    def add(self, faults: Iterable[Fault], prefix: str = "") -> None:
        """Record faults that a plugin found, their paths put below `prefix`."""
        for fault in faults:
            path = join(prefix, fault.path) if fault.path else prefix
            self.fault(path, fault.found, fault.expected, fault.hint, fault.kind)

    def notice(self, path: str, found: str, now: str = "", why: str = "") -> None:
        """Record an older spelling that was upgraded, or what is to be said of a value."""
        notice = Notice(path, found, now, why)
        if notice not in self.notices:
            self.notices.append(notice)

    def unknown_key(self, path: str, key: str, valid: Iterable[str]) -> None:
        """Record a key that nothing knows, with the nearest valid one."""
        names = list(valid)
        self.fault(join(path, key), f"unknown key {key!r}", listed(names), nearest(key, names))

    def mapping(self, value: Any, path: str, what: str = "a mapping") -> dict[str, Any] | None:
        """Return value when it is a mapping; None becomes an empty one. Otherwise record the fault and return None."""
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.fault(path, shown(value), what)
        return None


def join(path: str, key: str | int) -> str:
    """Return the path of a key below a path."""
    return f"{path}.{key}" if path else str(key)


def listed(names: Iterable[str], most: int = 14) -> str:
    """Return "one of: …" for valid names, cut where they are many; "" where there are none."""
    names = list(names)
    rest = f", … ({len(names)} in all)" if len(names) > most else ""
    return f"one of: {', '.join(names[:most])}{rest}" if names else ""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return "did you mean …?" for the nearest valid name, or nothing."""
    names = {candidate.lower(): candidate for candidate in valid}
    near = difflib.get_close_matches(str(name).lower(), list(names), n=1, cutoff=0.6)
    return f"did you mean {names[near[0]]!r}?" if near else ""


def shown(value: Any, most: int = 60) -> str:
    """Return a value as a message shows it: as JSON, cut where it is long."""
    import json

    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"

"""Shows a run as it goes: bars on a terminal, plain lines elsewhere, one table at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from drupe.core.results import RunResult, TargetResult

__all__ = ["Reporter", "final_table", "make_reporter"]


class Reporter(Protocol):
    """Gets the driver's events, from any thread."""

    def __call__(self, event: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def make_reporter(stream: TextIO | None = None, *, quiet: bool = False) -> Reporter:
    """Return the reporter for a stream: bars for a terminal, lines otherwise, only notices and warnings if quiet."""
    stream = stream or sys.stdout
    if quiet:
        return _Lines(stream, only=("notice", "warning", "host failed", "trial set aside"))
    return _Bars(stream) if stream.isatty() else _Lines(stream)


def _point(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items()) or "as written"


def _line(event: Mapping[str, Any]) -> str | None:
    """Return what a plain log says of an event, or None."""
    match event["event"]:
        case "trial started":
            return f"trial {event['number']} on {event['target']}: {_point(event['point'])}"
        case "step started":
            return f"  {event['name']} ({event['type'] or event['kind']}) on {event['host']} …"
        case "step awaited":
            return f"  {event['name']}: waiting for another trial or run, which is at it already …"
        case "step finished" if event["cached"]:
            return f"  {event['name']}: from the store ({event['seconds']:.1f} s saved)"
        case "step finished":
            return f"  {event['name']}: {event['seconds']:.1f} s"
        case "step failed":
            return f"  {event['name']} failed: {event['error']}"
        case "host failed":
            return f"  host {event['host']} failed (attempt {event['attempt']}): {event['error']}"
        case "trial finished":
            return "  " + _candidate_line(event["candidate"])
        case "trial set aside":
            return f"  trial {event['number']} is set aside, other trials go on; {event['error']}"
        case "warm start":
            return f"{event['target']}: the search starts from the {event['points']} best points of {event['origin']}"
        case "certifying":
            return f"candidate {event['number']}: measuring on data that nothing was selected on"
        case "notice":
            return f"notice: {event['message']}"
        case "warning":
            return f"warning: {event['message']}"
    return None


def _candidate_line(candidate: Mapping[str, Any]) -> str:
    if candidate["state"] == "failed":
        return f"trial {candidate['number']} failed: {candidate['error']}"
    values = ", ".join(f"{name} {m['value']:.4g} {m['unit']}" for name, m in candidate["measurements"].items())
    if candidate["state"] == "pruned":
        return f"trial {candidate['number']}: {values or 'not measured'}; cut short: {candidate['error']}"
    values = values or "done"
    if not candidate["violations"]:
        return f"trial {candidate['number']}: {values}"
    return f"trial {candidate['number']}: {values}; {'meets the goals' if candidate['feasible'] else 'breaks a goal'}"


class _Lines:
    """One line per thing that happened; long steps say every 20 seconds how far they are."""

    def __init__(self, stream: TextIO, only: tuple[str, ...] = ()) -> None:
        self._stream = stream
        self._only = only
        self._lock = threading.Lock()
        self._said = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._only and event["event"] not in self._only:
            return
        text = _line(event)
        with self._lock:
            if text is None and event["event"] == "progress" and time.monotonic() - self._said > 20:
                text = f"    {_progress_text(event)}"
            if text is not None:
                self._said = time.monotonic()
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to end."""


def _progress_text(event: Mapping[str, Any]) -> str:
    values = " ".join(f"{name} {value:.4g}" for name, value in event.get("values", {}).items())
    return (
        f"{event['step']['name']}: {event['done']:g} of {event['total']:g} {event.get('message', '')} {values}".rstrip()
    )


class _Bars:
    """A bar per running step, with time left, above the lines of what is done."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[values]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            kind = event["event"]
            if kind == "step started":
                title = f"{event['name']} on {event['host']}"
                self._tasks[event["key"]] = self._progress.add_task(title, total=None, values="")
                return
            if kind == "progress":
                task = self._tasks.get(event["step"]["key"])
                if task is not None:
                    values = " ".join(f"{name} {value:.4g}" for name, value in event.get("values", {}).items())
                    self._progress.update(
                        task, completed=event["done"], total=event["total"], values=values or event.get("message", "")
                    )
                return
            if kind in ("step finished", "step failed"):
                task = self._tasks.pop(event["key"], None)
                if task is not None:
                    self._progress.remove_task(task)
            text = _line(event)
            if text is not None:
                self._progress.print(text, markup=False)

    def close(self) -> None:
        """Take the bars off the screen."""
        self._progress.stop()


_STATES = {"failed": "failed", "pruned": "cut short"}


def final_table(result: RunResult, stream: TextIO | None = None) -> None:
    """Print the outcome: a table of candidates per target, the verdicts, where the model lies."""
    from rich.console import Console
    from rich.table import Table

    stream = stream or sys.stdout
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 160)
    for target in result.targets.values():
        metrics = list(dict.fromkeys(name for c in target.candidates for name in c.measurements))
        points = list(dict.fromkeys(name for c in target.candidates for name in c.point))
        table = Table(title=f"Candidates for {target.target}", title_justify="left")
        goals = any(c.violations for c in target.candidates)
        for column in ("#", *points, *metrics, "goals" if goals else "state", "seconds"):
            table.add_column(column, justify="right" if column not in points else "left", overflow="fold")
        for c in target.candidates:
            cells = [f"{c.number}*" if c.number == target.winner else str(c.number)]
            cells += [str(c.point.get(name, "")) for name in points]
            for name in metrics:
                m = c.measurements.get(name)
                cells.append((f"{m.value:.4g} {m.unit}" + (f" ({m.n} of {m.of})" if m.of else "")) if m else "–")
            cells.append(_STATES.get(c.state) or (("met" if c.feasible else "broken") if goals else "done"))
            cells.append(f"{c.cost:.1f}")
            table.add_row(*cells)
        console.print(table)
        for line in _verdict_lines(target):
            console.print(line, markup=False, soft_wrap=True)
        if target.search.get("workers", 1) > 1:
            console.print(_workers_line(target.search), markup=False, soft_wrap=True)
        if target.model_dir:
            console.print(f"Model: {result.output_dir / target.model_dir}", markup=False, soft_wrap=True)


def _workers_line(search: Mapping[str, Any]) -> str:
    return (
        f"{search['workers']} workers, {search['seconds']:.1f} s; for {search['exclusive_share']:.1%} of that a timed "
        "metric had its machine alone"
    )


def _verdict_lines(target: TargetResult) -> list[str]:
    lines = [f"  {verdict['text']}" for verdict in target.verdicts]
    if target.status == "infeasible":
        lines += [f"  {line}" for line in _explained(target.explanation)]
    lines += [f"  warning: {text}" for text in target.warnings]
    if target.sample_evaluations:
        lines.append(f"  {_saved_text(target.sample_evaluations)}")
        lines += [f"  {target.sample_evaluations[key]}" for key in ("guarantee",) if key in target.sample_evaluations]
    lines += [f"  {line}" for line in _set_aside_lines(target)]
    head = {
        "certified": f"Winner for {target.target}: candidate {target.winner}, certified",
        "met": f"Winner for {target.target}: candidate {target.winner}, "
        + ("met, not certified" if target.verdicts else "no goal was set"),
        "undecided": f"No winner for {target.target}: undecided; {target.message}",
        "infeasible": f"No winner for {target.target}: no candidate met the goals; {target.message}",
        "failed": f"No winner for {target.target}: {target.message}",
        "stopped": f"No winner for {target.target}: stopped; {target.message}",
    }.get(target.status, target.message)
    return [head, *lines]


def _set_aside_lines(target: TargetResult) -> list[str]:
    """Say which trials their hosts failed. The last error of a target that was stopped stands in its message."""
    lines = [f"trial {one['number']} was set aside: {one['error']}" for one in target.set_aside]
    if lines and target.status != "stopped":
        lines.append("the same command takes up the trials that were set aside")
    return lines


def _explained(explanation: Mapping[str, Any]) -> list[str]:
    """Say what stood in the way where nothing meets the goals."""
    lines = []
    if explanation.get("binding"):
        lines.append(f"the goal that blocks: {explanation['binding']}")
    if explanation.get("relaxations"):
        lines.append(f"nearest relaxation: {explanation['relaxations'][0]}")
    if explanation.get("front"):
        lines.append("no other candidate beats: " + ", ".join(map(str, explanation["front"])))
    return lines


def _saved_text(counts: Mapping[str, Any]) -> str:
    measured, full = counts["measured"], counts["in_full"]
    text = f"Sample evaluations: {measured:,} instead of {full:,}"
    times = f" ({full / measured:.1f} times fewer)" if measured else ""
    return f"{text}{times}; {counts['cut_short']} candidates were cut short"

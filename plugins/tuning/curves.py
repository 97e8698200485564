"""Curves of a training run, as data and as a picture (SVG, written by hand: no drawing library is needed)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

__all__ = ["Curves", "svg"]

_MOST = 2000
"""Points kept; longer runs keep every second, fourth, … step, and always the last."""


@dataclass
class Curves:
    """One entry a step: step, loss, learning_rate, grad_norm, tokens_per_second, memory (bytes); evaluations apart."""

    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data, thinned to what a picture can show."""
        stride = math.ceil(len(self.steps) / _MOST) or 1
        kept = self.steps[::stride]
        if self.steps and kept[-1] is not self.steps[-1]:
            kept = [*kept, self.steps[-1]]
        return {"steps": [dict(entry) for entry in kept], "evaluations": [dict(entry) for entry in self.evaluations]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curves:
        """Build curves from what `to_json` gave."""
        return cls([dict(entry) for entry in data["steps"]], [dict(entry) for entry in data["evaluations"]])


def svg(curves: Curves, title: str) -> str:
    """Return a picture of four panels: loss (with the evaluation loss), learning rate, tokens per second, memory."""
    data = curves.to_json()
    steps: list[dict[str, float]] = data["steps"]
    evaluations: list[dict[str, float]] = data["evaluations"]
    panels: list[tuple[str, list[tuple[str, str, list[tuple[float, float]]]]]] = [
        (
            "loss",
            [
                ("training", "#3366aa", [(e["step"], e["loss"]) for e in steps]),
                ("evaluation", "#cc6633", [(e["step"], e["loss"]) for e in evaluations]),
            ],
        ),
        ("learning rate", [("", "#3366aa", [(e["step"], e["learning_rate"]) for e in steps])]),
        ("tokens per second", [("", "#3366aa", [(e["step"], e["tokens_per_second"]) for e in steps])]),
        ("memory, GiB", [("", "#3366aa", [(e["step"], e["memory"] / 2**30) for e in steps])]),
    ]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="840" height="540" font-family="sans-serif" font-size="11">',
        '<rect width="840" height="540" fill="white"/>',
        f'<text x="20" y="22" font-size="14">{escape(title)}</text>',
    ]
    for number, (name, lines) in enumerate(panels):
        parts += _panel(name, lines, 70 + (number % 2) * 410, 50 + (number // 2) * 250)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    name: str, lines: Sequence[tuple[str, str, list[tuple[float, float]]]], left: float, top: float
) -> list[str]:
    width, height = 330.0, 180.0
    points = [p for _, _, line in lines for p in line if math.isfinite(p[1])]
    parts = [
        f'<text x="{left}" y="{top - 6}" font-size="12">{escape(name)}</text>',
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#bbbbbb"/>',
    ]
    if not points:
        return parts
    low_x, high_x = _limits([x for x, _ in points])
    low_y, high_y = _limits([y for _, y in points])

    def place(x: float, y: float) -> str:
        across = left + (x - low_x) / (high_x - low_x) * width
        return f"{across:.1f},{top + height - (y - low_y) / (high_y - low_y) * height:.1f}"

    for value, down in ((high_y, 10.0), (low_y, height)):
        parts.append(f'<text x="{left - 6}" y="{top + down:.1f}" text-anchor="end">{value:.4g}</text>')
    parts.append(f'<text x="{left}" y="{top + height + 16}">{low_x:.0f}</text>')
    parts.append(f'<text x="{left + width}" y="{top + height + 16}" text-anchor="end">step {high_x:.0f}</text>')
    for number, (label, colour, line) in enumerate(entry for entry in lines if entry[2]):
        drawn = " ".join(place(x, y) for x, y in line if math.isfinite(y))
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if label:
            x, y = left + width - 6, top + 14 + 14 * number
            parts.append(f'<text x="{x}" y="{y}" text-anchor="end" fill="{colour}">{label}</text>')
    return parts


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)

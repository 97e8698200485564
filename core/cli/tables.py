"""Columns of plain text: fast, and the same in a pipe."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

__all__ = ["columns"]


def columns(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows below a heading, each column as wide as its widest cell, the last one cut to the terminal."""
    widths = [max(len(row[i]) for row in (heading, *rows)) for i in range(len(heading))]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    lines = []
    for row in (heading, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        lines.append(line if len(line) <= limit else f"{line[: limit - 1]}…")
    return "\n".join(lines)

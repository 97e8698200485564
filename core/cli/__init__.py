"""The command line's door: it leads to the commands, and an interruption on the way there leaves no traceback."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every expected error is one clear message on stderr.

    0 done; 1 a step or host failed; 2 the workflow or the command is wrong; 3 nothing met the goals; 130 interrupted.
    """
    try:
        from drupe.core.cli.group import main as run

        return run(arguments)
    except KeyboardInterrupt:
        import sys

        sys.stderr.write("interrupted\n")
        return 130

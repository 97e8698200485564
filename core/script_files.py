"""What a user's script imports from its own folder: it goes where the script goes and counts where that counts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["script_files"]


def script_files(script: Path) -> list[Path]:
    """Return a Python file and the modules and packages beside it that it imports, also through one another.

    Read from the text, nothing is run: imports inside functions count, names that are put together at run time don't.
    Other files, and files that can't be read as Python, stand for themselves.
    """
    found: dict[Path, None] = {script: None}
    waiting = [script]
    while waiting:
        for name in _imported(waiting.pop()):
            for path in _beside(script.parent, name):
                if path not in found:
                    found[path] = None
                    waiting.append(path)
    first, *others = found
    return [first, *sorted(others)]


def _imported(path: Path) -> Iterator[str]:
    """Yield the first part of each imported module's name; relative imports stay in what was taken already."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _beside(folder: Path, name: str) -> list[Path]:
    package = folder / name
    if package.is_dir():
        files = [path for path in package.rglob("*.py") if "__pycache__" not in path.parts]
        if files:
            return sorted(files)
    module = folder / f"{name}.py"
    return [module] if module.is_file() else []

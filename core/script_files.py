"""What a user's script imports from its own folder: it goes where the script goes and counts where that counts."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import lru_cache
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


def _imported(path: Path) -> Sequence[str]:
    try:
        return _named(path.read_bytes()) if path.suffix == ".py" else ()
    except (OSError, SyntaxError, ValueError):
        return ()


@lru_cache(256)
def _named(source: bytes) -> Sequence[str]:
    """Return the first part of each imported module's name; relative imports stay in what was taken already.

    Every key of a step or a value that a script counts in asks anew; parsing takes far longer than reading.
    """
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update((alias.name.partition(".")[0], None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found[node.module.partition(".")[0]] = None
    return tuple(found)


def _beside(folder: Path, name: str) -> list[Path]:
    package = folder / name
    if package.is_dir():
        files = [path for path in package.rglob("*.py") if "__pycache__" not in path.parts]
        if files:
            return sorted(files)
    module = folder / f"{name}.py"
    return [module] if module.is_file() else []

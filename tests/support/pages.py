"""Runs the code blocks of a page of documentation in order, in a folder of its own.

A block whose first line is a comment with a file name is written there. Other Python is executed, all of a page in one
namespace; TOML and YAML must parse. In a console block each `$ ` line is run and must succeed, and the lines below it
must be found in what it printed. `pip install` of a folder is done without pip: its sources and entry points are put on
the PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from drupe.testing import install_plugin

__all__ = ["run_page"]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w./-]+\.\w+)\n")


def run_page(page: Path, folder: Path) -> int:
    """Run every block and return how many there were. Raises AssertionError naming the block that fails."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "page"}
    blocks = list(_BLOCK.finditer(text))
    for block in blocks:
        line = text[: block.start()].count("\n") + 2
        _run(block[1], block[2], f"{page.name}:{line}", folder, namespace)
    return len(blocks)


def _run(language: str, code: str, where: str, folder: Path, namespace: dict[str, Any]) -> None:
    named = _FILE.match(code)
    match language:
        case "python":
            compiled = compile("\n" * (int(where.rpartition(":")[2]) - 1) + code, where, "exec")
            if named is None:
                exec(compiled, namespace)
        case "toml":
            tomllib.loads(code)
        case "yaml":
            assert yaml.safe_load(code) is not None, where
        case "json":
            json.loads(code)
        case "console":
            _console(code, where, folder)
        case _:
            raise AssertionError(f"{where}: nothing runs blocks of {language}")
    if named is not None:
        path = folder / named[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")


def _console(code: str, where: str, folder: Path) -> None:
    commands: list[tuple[str, list[str]]] = []
    for line in code.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif line.strip():
            commands[-1][1].append(line.strip())
    for command, expected in commands:
        if command.startswith("pip install"):
            for name in shlex.split(command)[2:]:
                if not name.startswith("-"):
                    _install(folder / name.partition("[")[0], folder / "site")
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=_environment(folder),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{where}: {command} ended with {done.returncode}:\n{said}"
        for line in expected:
            assert line in said, f"{where}: {command} did not print {line!r}:\n{said}"


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # An editable install: the sources themselves come first, the entry points from the site.
        "PYTHONPATH": os.pathsep.join([*map(str, folder.glob("*/src")), str(folder / "site")]),
        "DRUPE_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }


def _install(package: Path, site: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install_plugin(site, project["name"], {}, plugins=project["entry-points"]["drupe"], version=project["version"])

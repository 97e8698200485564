"""`acme-board`: the command through which a board is reached. It stands for the vendor's own tool.

    acme-board --board DIR info                what the board is, as JSON
    acme-board --board DIR put LOCAL NAME      copy a folder to the board
    acme-board --board DIR run NAME            run the job folder NAME there; its events come line by line
    acme-board --board DIR get NAME LOCAL      copy what the job made back
    acme-board --board DIR remove NAME         remove a folder from the board

This board is simulated: a folder is its disk, and this machine's Python is its Python.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from drupe_acme_npu.simulator import CLOCK_MHZ, TABLE_VERSION

__all__ = ["main"]

_MADE_BY_JOBS = ("result.json", "host_error.json", "log.txt", "outputs", "checkpoint")
_NOT_REACHED = 74


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; the exit code of `run` is the worker's."""
    parser = argparse.ArgumentParser(prog="acme-board")
    parser.add_argument("--board", type=Path, required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info")
    for name, fields in (("put", ("local", "name")), ("run", ("name",)), ("get", ("name", "local"))):
        command = commands.add_parser(name)
        for field in fields:
            command.add_argument(field)
    commands.add_parser("remove").add_argument("name")
    given = parser.parse_args(arguments)
    board: Path = given.board
    if not board.is_dir():
        print(f"no board at {board}", file=sys.stderr)
        return _NOT_REACHED
    match given.command:
        case "info":
            print(json.dumps(_info(board)))
        case "put":
            shutil.copytree(given.local, board / given.name)
        case "get":
            for name in _MADE_BY_JOBS:
                source, target = board / given.name / name, Path(given.local) / name
                if source.is_dir():
                    shutil.copytree(source, target, dirs_exist_ok=True)
                elif source.is_file():
                    shutil.copyfile(source, target)
        case "remove":
            shutil.rmtree(board / given.name)
        case "run":
            return _run(board / given.name)
    return 0


def _info(board: Path) -> dict[str, Any]:
    versions = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions() if d.name}
    return {
        "name": "Acme NPU (simulated)",
        "serial": (board / "serial").read_text().strip() if (board / "serial").is_file() else "0000",
        "clock_mhz": CLOCK_MHZ,
        "table": TABLE_VERSION,
        "python": platform.python_version(),
        "versions": versions,
    }


def _run(folder: Path) -> int:
    worker = subprocess.Popen([sys.executable, "-m", "drupe.core.worker", str(folder)], stdout=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda number, frame: worker.terminate())
    events = folder / "events.jsonl"
    read = 0
    while True:
        ended = worker.poll() is not None
        if events.is_file():
            with events.open("rb") as handle:
                handle.seek(read)
                text = handle.read()
            # Only whole lines: the worker may be in the middle of one.
            whole = text[: text.rfind(b"\n") + 1]
            read += len(whole)
            sys.stdout.write(whole.decode())
            sys.stdout.flush()
        if ended:
            return worker.returncode
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())

"""Forks a child for each command line of `drupe` that it is told to run; see `commands`. Started by path, alone.

Reads {"arguments", "env", "cwd", "stdout", "stderr"} a line, the last two being files to write; says {"pid"} when the
child runs and {"code"} when it has ended.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

PRELOADED = (
    "drupe.core.cli.cache", "drupe.core.cli.hosts", "drupe.core.cli.passes", "drupe.core.cli.plan",
    "drupe.core.cli.plugins", "drupe.core.cli.progress", "drupe.core.cli.rehearse", "drupe.core.cli.run",
    "drupe.core.cli.validate", "drupe.core.cli.verify", "drupe.core.driver", "drupe.core.engine", "drupe.core.plan",
    "drupe.core.results", "drupe.core.statistics", "drupe.core.work", "drupe.core.workflow.read", "drupe.hosts.local",
    "drupe.search.cli", "drupe.search.study", "numpy", "optuna", "optuna.samplers", "rich.console", "rich.table",
    "scipy.stats", "yaml",
)  # fmt: skip
"""What a run of the toy workflow imports, less plugins."""


def child(request: dict[str, Any], base: list[str]) -> None:
    """Become what `python -m drupe …` would be. Ends in SystemExit."""
    os.chdir(request["cwd"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        handle = os.open(path, flags if number else os.O_RDONLY)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(request["env"])
    own = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [request["cwd"], *own, *base]
    sys.argv[:] = ["drupe", *request["arguments"]]
    importlib.invalidate_caches()
    runpy.run_module("drupe", run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve until stdin ends."""
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    given = {str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path}
    del sys.path[0]  # This folder.
    base = [path for path in sys.path if path not in given]
    for name in PRELOADED:
        importlib.import_module(name)
    # A fork has the thread that forks and no other: what such a thread held would stay held.
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "an import started a thread"
    gc.freeze()
    for line in requests:
        pid = os.fork()
        if pid == 0:
            # Not the child's, which may start processes that outlive it.
            requests.close()
            answers.close()
            child(json.loads(line), base)
            return
        for answer in ({"pid": pid}, None):
            if answer is None:
                answer = {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()

"""What a step costs beyond its pass on each host.

    python -m benchmarks.hosts                      in-process, warm worker, sandbox, SSH, Slurm, Ray
    python -m benchmarks.hosts --only warm --steps 50
    python -m benchmarks.hosts --scaling            1,000 trials on 100 pretended nodes: see hosts_scaling.py

A step is a pass that does nothing on a model of 1 MB; the figures are medians of steps after the first few, which
start workers. Servers are started on this machine by the helpers of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from drupe.core.testing.sites import install_plugin  # noqa: E402

_FIRST = 3
"""Steps that start workers and connections, and are not counted."""

LIMITS = {"in-process": 30, "warm": 150, "ray": 300}
"""Milliseconds that a step may cost beyond its pass."""
_PLUGIN = """
from drupe import PassSpec, hookimpl


@hookimpl
def drupe_passes():
    return [PassSpec(name="Noop", target="drupe_noop.passes:Noop", accepts={"blob"}, produces="blob")]
"""
_PASSES = """
from drupe import Pass, PassConfig


class Noop(Pass):
    class Config(PassConfig):
        turn: int = 0

    def run(self, model, config, context):
        return model
"""


def make_site(folder: Path) -> Path:
    """Install the pass that does nothing, here and for workers."""
    files = {"drupe_noop/__init__.py": "", "drupe_noop/plugin.py": _PLUGIN, "drupe_noop/passes.py": _PASSES}
    return install_plugin(folder / "site", "drupe-noop", files, plugins={"noop": "drupe_noop.plugin"})


@contextmanager
def system(name: str, folder: Path, site: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a host's type and config, with whatever server it needs running."""
    from tests.hosts.servers import slurm, sshd

    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    shared: dict[str, Any] = {"environment": {"PYTHONPATH": path}}
    match name:
        case "in-process":
            yield "LocalSystem", {"in_process": True}
        case "warm":
            yield "LocalSystem", shared
        case "sandbox":
            yield "LocalSystem", {**shared, "sandbox": "bubblewrap"}
        case "ssh":
            with sshd(folder / "sshd") as server:
                yield "SSH", {**shared, **server.reach(folder / "far")}
        case "slurm":
            with slurm(folder / "slurm") as conf:
                os.environ["SLURM_CONF"] = str(conf)
                yield "Slurm", {**shared, "resources": {"cpus": 1}}
        case "ray":
            (folder / "token").write_text("t" * 64)
            os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
            yield "Ray", {**shared, "folder": str(folder / "far")}


def overhead(name: str, folder: Path, steps: int) -> list[float]:
    """Return the milliseconds that each of so many steps cost beyond its pass: from the plan's step to its result."""
    from drupe.core.accelerators import Accelerator
    from drupe.core.engine import Engine
    from drupe.core.model import Model
    from drupe.core.plan import StepPlan
    from drupe.core.registry import Registry
    from drupe.core.store import Store
    from drupe.core.workflow.read import read_workflow

    site = make_site(folder)
    sys.path.insert(0, str(site))
    store = Store(folder / "store")
    (folder / "made").mkdir()
    (folder / "made" / "weights").write_bytes(os.urandom(1_000_000))
    model = Model.from_dir("blob", folder / "made")
    store.publish(model, folder / "made")
    registry = Registry.discover({})
    with system(name, folder, site) as (kind, config):
        path = folder / "workflow.json"
        path.write_text(
            json.dumps(
                {
                    "input_model": {"type": "HfModel", "model_path": "unused", "task": "text-generation"},
                    "systems": {"here": {"type": kind, "threads": 1, "resources": {"cpus": 1}, **config}},
                    "passes": {"noop": {"type": "Noop"}},
                    "host": "here",
                    "target": "here",
                    "cache_dir": str(folder / "store"),
                    "output_dir": str(folder / "out"),
                }
            )
        )
        engine = Engine(read_workflow(path, registry), registry, store)
        found = []
        for turn in range(steps + _FIRST):
            plan = StepPlan("noop", "Noop", {"turn": turn}, "here", "passes.noop")
            started = time.perf_counter()
            step = engine.run_pass(plan, model, Accelerator())
            found.append((time.perf_counter() - started - step.seconds) * 1000)
            assert not step.cached
        engine.close()
    return found[_FIRST:]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["in-process", "warm", "sandbox", "ssh", "slurm", "ray"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--full", action="store_true", help="100 steps on each host")
    arguments = parser.parse_args()
    os.environ["DRUPE_LOCKS"] = tempfile.mkdtemp()
    if arguments.scaling:
        command = [sys.executable, "-m", "benchmarks.hosts_scaling", "--full"]
        sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
    steps = 100 if arguments.full else arguments.steps
    above = []
    print(f"milliseconds beyond the pass itself, median of {steps} steps (lowest to highest)")
    for name in arguments.only:
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="dh-", ignore_cleanup_errors=True) as folder:
            found = overhead(name, Path(folder), steps)
        median = statistics.median(found)
        limit = f", at most {LIMITS[name]}" if name in LIMITS else ""
        above += [name] if median > LIMITS.get(name, median) else []
        print(f"{name:11} {median:7.1f} ({min(found):.1f} to {max(found):.1f}){limit}", flush=True)
    if above:
        sys.exit(f"above the limit: {', '.join(above)}")


if __name__ == "__main__":
    main()

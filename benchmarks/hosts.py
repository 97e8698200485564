"""What a step costs beyond its pass on each host, and how the driver scales.

    python -m benchmarks.hosts                      in-process, warm worker, sandbox, SSH, Slurm, Ray
    python -m benchmarks.hosts --only warm --steps 50
    python -m benchmarks.hosts --scaling            1,000 trials on 100 pretended nodes

A step is a pass that does nothing on a model of 1 MB; the figures are medians of steps after the first few, which
start workers. Servers are started on this machine by the helpers of the tests.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drupe.core.hosts import Events, Host, HostDescription, JobOptions
from drupe.core.testing.sites import install_plugin

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
    """Return the milliseconds that each of so many steps cost beyond its pass."""
    from drupe.core.accelerators import Accelerator
    from drupe.core.context import Resources
    from drupe.core.digests import digest_of
    from drupe.core.executor import Executor
    from drupe.core.job import Job
    from drupe.core.model import Model
    from drupe.core.registry import Registry
    from drupe.core.store import Store

    site = make_site(folder)
    sys.path.insert(0, str(site))
    store = Store(folder / "store")
    (folder / "made").mkdir()
    (folder / "made" / "weights").write_bytes(os.urandom(1_000_000))
    model = Model.from_dir("blob", folder / "made")
    store.publish(model, folder / "made")
    registry = Registry.discover({})
    with system(name, folder, site) as (kind, config):
        entry = registry.get("drupe_hosts", kind)
        factory = registry.resolve(entry)
        host: Host = factory(entry.spec, factory.Config.model_validate(config), state_dir=folder / "state")
        executor = Executor(
            store, registry, lambda name: host, events=lambda event: None, cancelled=lambda: False, log_dir=None
        )
        found = []
        for turn in range(steps + 3):
            job = Job(
                "pass",
                digest_of([name, turn]),
                "noop",
                "Noop",
                {"turn": turn},
                inputs={"model": model},
                accelerator=Accelerator(),
                resources=Resources(cpus=1),
            )
            started = time.perf_counter()
            step = executor.step(job, "here", JobOptions(resources=job.resources))
            found.append((time.perf_counter() - started - step.seconds) * 1000)
        host.close()
    return found[3:]


class PretendedHost(Host):
    """A hundred nodes that take as long as they say and make what they are told."""

    def __init__(self, nodes: int, seconds: Callable[[Mapping[str, Any]], float]) -> None:
        self._free = threading.Semaphore(nodes)
        self._seconds = seconds
        self.busy = 0.0
        self._lock = threading.Lock()

    def describe(self) -> HostDescription:
        return HostDescription({}, slots=100)

    def run(self, job: Path, options: JobOptions, events: Events, cancelled: Callable[[], bool]) -> Mapping[str, Any]:
        import json

        from drupe.core.job import write_json
        from drupe.core.model import Model

        data = json.loads((job / "job.json").read_text())
        seconds = self._seconds(data)
        with self._free:
            time.sleep(seconds)
        with self._lock:
            self.busy += seconds
        (job / "outputs" / "weights").write_text(data["key"])
        model = Model.from_dir("blob", job / "outputs")
        result = {"schema": 1, "status": "done", "error": None, "model": model.to_json(), "seconds": seconds}
        write_json(job / "result.json", result, durable=False)
        return result


def scaling(folder: Path, trials: int, nodes: int, scale: float) -> None:
    """Run trials of three steps each (tune, merge, build: 60, 10 and 15 s, made shorter by `scale`) on pretended nodes.

    Trials share what they can, as in a search: a tenth as many ranks as trials. Prints the driver's share of the time.
    """
    import resource

    from drupe.core.accelerators import Accelerator
    from drupe.core.digests import digest_of
    from drupe.core.executor import Executor
    from drupe.core.job import Job
    from drupe.core.model import Model
    from drupe.core.registry import Registry
    from drupe.core.store import Store

    measured = {"tune": 60.0, "merge": 10.0, "build": 15.0}
    store = Store(folder / f"store-{trials}-{nodes}")
    host = PretendedHost(nodes, lambda data: measured[data["name"]] * scale)
    registry = Registry.discover({"autoload": False})
    executor = Executor(
        store, registry, lambda name: host, events=lambda event: None, cancelled=lambda: False, log_dir=None
    )
    made = folder / f"made-{trials}-{nodes}"
    made.mkdir()
    (made / "weights").write_text("start")
    first = Model.from_dir("blob", made)
    store.publish(first, made)
    numbers = iter(range(trials))
    ranks = max(1, trials // 10)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            model = first
            for name, value in (("tune", number % ranks), ("merge", number % ranks), ("build", number)):
                key = digest_of([trials, nodes, name, value, model.digest])
                job = Job("pass", key, name, "Noop", {}, inputs={"model": model}, accelerator=Accelerator())
                step = executor.step(job, "there", JobOptions())
                assert step.model is not None
                model = step.model

    threads = [threading.Thread(target=work) for _ in range(nodes)]
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    driver = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    records = sum(1 for _ in store.records())
    ideal = host.busy / nodes
    print(
        f"{trials:5d} trials on {nodes:3d} nodes: {wall:6.2f} s, of which the nodes' own work takes {ideal:6.2f} s at "
        f"least; the driver computed for {driver:5.2f} s ({driver / trials * 1000:4.1f} ms a trial); {records} steps; "
        f"at the real times of the steps that is {driver / (ideal / scale) * 100:.2f} % of the run"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["in-process", "warm", "sandbox", "ssh", "slurm", "ray"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scaling", action="store_true")
    arguments = parser.parse_args()
    os.environ["DRUPE_LOCKS"] = tempfile.mkdtemp()
    if arguments.scaling:
        with tempfile.TemporaryDirectory() as folder:
            for trials, nodes in ((250, 100), (500, 100), (1000, 100), (1000, 10)):
                scaling(Path(folder), trials, nodes, 0.05)
        return
    print(f"milliseconds beyond the pass itself, median of {arguments.steps} steps (lowest to highest)")
    for name in arguments.only:
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="dh-", ignore_cleanup_errors=True) as folder:
            found = overhead(name, Path(folder), arguments.steps)
        limit = f", at most {LIMITS[name]}" if name in LIMITS else ""
        print(f"{name:11} {statistics.median(found):7.1f} ({min(found):.1f} to {max(found):.1f}){limit}", flush=True)


if __name__ == "__main__":
    main()

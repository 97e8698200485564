"""How the driver scales: a search of many trials on many pretended nodes, whose steps only take time.

    python -m benchmarks.hosts_scaling                       200 trials on 20 nodes
    python -m benchmarks.hosts_scaling --full                1,000 trials on 100 nodes, and on 10 and 50
    python -m benchmarks.hosts_scaling --times out/drupe.json   with the step times of that run

The driver, the study, the store and the manifest are the real ones; only the nodes pretend: a step sleeps for as long
as it took when it was measured, made shorter by --scale, and its result is made up. So the driver has as much to do as
in the real run, in a fraction of the time, and what it costs is told as its share of the run at real times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from drupe.core.testing.sites import install_plugin  # noqa: E402

TIMES = {"tune": 107.0, "merge": 5.0, "build": 5.0, "measure": 20.0}
"""Seconds of the tone example's steps (a model of 135 M parameters, two cores), as `--times` reads them."""
_PLUGIN = """
from drupe import HostSpec, PassSpec, hookimpl


@hookimpl
def drupe_passes():
    target = "drupe_pretended.passes"
    return [
        PassSpec(name=name, target=f"{target}:{name}", accepts={"text"}, produces="text")
        for name in ("PretendedTune", "PretendedMerge", "PretendedBuild")
    ]


@hookimpl
def drupe_hosts():
    return [HostSpec(name="Pretended", target="drupe_pretended.nodes:Pretended")]
"""
_PASSES = """
from drupe import Choice, FloatRange, IntRange, Pass, PassConfig, searchable


class PretendedTune(Pass):
    class Config(PassConfig):
        rank: int = searchable(16, IntRange(4, 128, log=True))
        rate: float = searchable(1e-3, FloatRange(1e-5, 1e-2, log=True))
        epochs: int = searchable(1, IntRange(1, 4))


class PretendedMerge(Pass):
    pass


class PretendedBuild(Pass):
    class Config(PassConfig):
        block: int = searchable(32, Choice(16, 32, 64, 128))
        head: str = searchable("int4", Choice("int4", "int8", "float"))
"""
_NODES = '''
"""Nodes that take as long as they say and make up what they were asked for."""
import hashlib
import json
import threading
import time

from pydantic import Field

from drupe import Host, HostConfig, HostDescription, Model
from drupe.core.job import write_json


class PretendedConfig(HostConfig):
    nodes: int = 1
    scale: float = 1.0
    seconds: dict[str, float] = Field(default_factory=dict)


class Pretended(Host):
    Config = PretendedConfig
    busy = 0.0

    def __init__(self, spec, config, *, state_dir):
        super().__init__(spec, config, state_dir=state_dir)
        self._free = threading.Semaphore(config.nodes)
        self._lock = threading.Lock()

    def describe(self):
        # No versions: nothing is installed there, and nothing is asked for.
        return HostDescription({}, [{"device": "cpu", "cores": 1}], self.config.nodes)

    def run(self, job, options, events, cancelled):
        data = json.loads((job / "job.json").read_text())
        seconds = self.config.seconds.get("measure" if data["kind"] == "measure" else data["name"], 0.0)
        with self._free:
            time.sleep(seconds * self.config.scale)
        with self._lock:
            Pretended.busy += seconds
        result = {"schema": 1, "status": "done", "error": None, "model": None, "measurements": None}
        result |= {"seconds": seconds, "report": {}, "versions": {}}
        if data["kind"] == "measure":
            result["measurements"] = _measured(data, (job / "inputs" / "model" / "text.txt").read_text())
        else:
            (job / "outputs" / "text.txt").write_text(data["key"])
            result["model"] = Model.from_dir("text", job / "outputs").to_json()
        write_json(job / "result.json", result, durable=False)
        return result


def _measured(data, text):
    skill = 0.5 + int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 0xFFFF / 2
    count = 60
    right = round(skill * count)
    rows = {str(n): [float(n < right)] for n in range(count)}
    value = {"unit": "", "n": count, "interval": [max(0.0, skill - 0.1), min(1.0, skill + 0.1)], "confidence": 0.95}
    found = {}
    for metric in data["options"]["metrics"]:
        proportion = metric["type"] == "toy_accuracy"
        (name,) = metric["sub_types"]
        one = {**value, "direction": "higher" if proportion else "lower", "proportion": proportion}
        found[metric["name"]] = {"rows": rows, "values": {name: {**one, "value": right / count}}, "seconds": 1.0}
    return found
'''
_FILES = {
    "drupe_pretended/__init__.py": "",
    "drupe_pretended/plugin.py": _PLUGIN,
    "drupe_pretended/passes.py": _PASSES,
    "drupe_pretended/nodes.py": _NODES,
}


def document(trials: int, nodes: int, scale: float, times: Mapping[str, float], sampler: str) -> dict[str, Any]:
    """Return the workflow: tune, merge, build, measured for accuracy and size; one worker of the search a node."""
    return {
        "input_model": {"type": "TextModel", "model_path": "toy://ab"},
        "systems": {"nodes": {"type": "Pretended", "nodes": nodes, "scale": scale, "seconds": dict(times)}},
        "data_configs": [{"name": "items", "type": "ToyItems", "count": 60}],
        "evaluators": {
            "quality": {
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "toy_accuracy",
                        "data_config": "items",
                        "sub_types": [
                            {"name": "accuracy_score", "priority": 1, "goal": {"type": "threshold", "value": 0.6}}
                        ],
                    },
                    {"name": "size", "type": "toy_length", "sub_types": [{"name": "characters", "priority": 2}]},
                ]
            }
        },
        "evaluator": "quality",
        "passes": {
            "tune": {
                "type": "PretendedTune",
                "rank": {"search": [4, 8, 16, 32, 64], "ordered": True},
                "rate": {"search": {"low": 1e-5, "high": 1e-2, "log": True}},
                "epochs": {"search": [1, 2, 3], "ordered": True},
            },
            "merge": {"type": "PretendedMerge"},
            "build": {
                "type": "PretendedBuild",
                "block": {"search": [16, 32, 64, 128], "ordered": True},
                "head": {"search": ["int4", "int8", "float"]},
            },
        },
        "search_strategy": {"sampler": sampler, "max_trials": trials, "workers": nodes, "seed": 1},
        "host": "nodes",
        "target": "nodes",
    }


def drive(path: Path) -> dict[str, Any]:
    """Run the workflow in this process, and return what it took."""
    import time

    from drupe.core.driver import Driver
    from drupe.core.registry import get_registry
    from drupe.core.workflow.read import read_workflow

    marks: list[tuple[float, float]] = []

    def note(event: Mapping[str, Any]) -> None:
        if event["event"] == "trial finished":
            marks.append((time.perf_counter() - started, time.process_time() - computed))

    started, computed = time.perf_counter(), time.process_time()
    driver = Driver(read_workflow(path, get_registry()), get_registry(), events=note)
    result = driver.run()
    wall, computed = time.perf_counter() - started, time.process_time() - computed
    from drupe_pretended.nodes import Pretended  # type: ignore[import-not-found]

    (target,) = result.targets.values()
    return {
        "wall": wall,
        "driver": computed,
        "busy": Pretended.busy,
        "marks": marks,
        "steps": sum(1 for _ in driver.store.records()),
        "trials": [candidate.number for candidate in target.candidates if candidate.state == "complete"],
        "status": target.status,
    }


def simulate(trials: int, nodes: int, scale: float, times: Mapping[str, float], sampler: str) -> None:
    """Run one search in a process of its own and print a line for it and one for how its cost grew."""
    with tempfile.TemporaryDirectory(prefix="drupe-scaling-") as text:
        folder = Path(text)
        site = install_plugin(
            folder / "site", "drupe-pretended", _FILES, plugins={"pretended": "drupe_pretended.plugin"}
        )
        path = folder / "workflow.json"
        wanted = document(trials, nodes, scale, times, sampler)
        path.write_text(json.dumps({**wanted, "cache_dir": str(folder / "cache"), "output_dir": str(folder / "out")}))
        toy = ROOT / "tests" / "support" / "toy"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.hosts_scaling", "--drive", str(path)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(site), str(toy), os.environ.get("PYTHONPATH", "")])),
                "DRUPE_HOME": str(folder / "home"),
                "DRUPE_LOCKS": str(folder / "locks"),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["trials"] == list(range(trials)), f"{len(found['trials'])} of {trials} trials completed"
    at_least = found["busy"] / nodes
    share = found["driver"] / at_least
    print(
        f"{trials:6} {nodes:6} {found['steps']:6} {at_least:9.0f} {found['driver']:9.1f} {share:8.2%} "
        f"{at_least * scale / found['wall']:9.0%} {found['driver'] / trials * 1000:9.1f}   {_growth(found['marks'])}",
        flush=True,
    )


def _growth(marks: list[tuple[float, float]]) -> str:
    """Milliseconds of the driver a trial, in each quarter of the trials."""
    quarter = max(1, len(marks) // 4)
    edges = [0.0, *(marks[min(len(marks), quarter * n) - 1][1] for n in range(1, 5))]
    return " ".join(f"{(b - a) / quarter * 1000:6.1f}" for a, b in itertools.pairwise(edges))


def read_times(manifest: Path) -> dict[str, float]:
    """Return the median seconds of each step of a run, from its drupe.json; measuring is the rest of a trial."""
    found: dict[str, list[float]] = {}
    for target in json.loads(manifest.read_text(encoding="utf-8"))["targets"].values():
        for candidate in target["candidates"]:
            for step in candidate["chain"]:
                found.setdefault(step["pass"], []).append(step["seconds"])
            total = sum(candidate["seconds"].values())
            found.setdefault("measure", []).append(total - sum(step["seconds"] for step in candidate["chain"]))
    times = {name: statistics.median(values) for name, values in found.items()}
    missing = set(TIMES) - set(times)
    if missing:
        raise SystemExit(
            f"{manifest} has no step {', '.join(sorted(missing))}; it is to be a run of tune, merge, build"
        )
    return {name: times[name] for name in TIMES}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=[50, 100, 200])
    parser.add_argument("--nodes", type=int, nargs="*", default=[20])
    parser.add_argument("--scale", type=float, default=0.05, help="how much shorter than measured the steps are")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--times", type=Path, help="the drupe.json of a run whose step times to take")
    parser.add_argument("--full", action="store_true", help="250, 500 and 1,000 trials on 10, 50 and 100 nodes")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        print(json.dumps(drive(arguments.drive)))
        return
    times = read_times(arguments.times) if arguments.times else TIMES
    runs = [(trials, nodes) for nodes in arguments.nodes for trials in arguments.trials]
    if arguments.full:
        runs = [(250, 100), (500, 100), (1000, 100), (1000, 50), (1000, 10)]
    print("steps take " + ", ".join(f"{name} {seconds:g} s" for name, seconds in times.items()))
    print(f"run at {arguments.scale:g} of that, sampler {arguments.sampler}")
    print("trials  nodes  steps  run, at least   driver    share     nodes  ms/trial   ms/trial in each quarter")
    print("                       (real s)       (s, CPU)            kept busy")
    for trials, nodes in runs:
        simulate(trials, nodes, arguments.scale, times, arguments.sampler)


if __name__ == "__main__":
    main()

"""Two workers of one thread each against one worker of one thread, on the tone example, each from an empty store.

Prints the seconds of each, their ratio, the share of the time in which a timed metric had the machine alone, and the
winners. It takes two cores that do nothing else.

python benchmarks/search_workers.py [--small] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 0.65

from drupe.core.workflow.document import read_document  # noqa: E402


def write(folder: Path, workers: int, *, small: bool) -> Path:
    """Write the tone example for so many workers of one thread, and return its path."""
    example = ROOT / "examples" / "tone"
    folder.mkdir(parents=True)
    shutil.copy(example / "phrases.jsonl", folder)
    document = read_document(example / "drupe.yaml")
    for system in document["systems"].values():
        system["resources"] = {"cpus": 1, "threads": 1}
    document["search_strategy"]["workers"] = workers
    document.update(cache_dir="cache", output_dir="out")
    if small:
        document["passes"]["tune"]["training_args"]["max_steps"] = 4
        document["data_configs"][0]["split"].update(train=32, selection=8, certification=8)
        for metric in document["evaluators"]["tone"]["metrics"]:
            if metric["name"] == "latency":
                metric["user_config"].update(warmup_num=1, repeat_test_num=3)
    path = folder / "drupe.json"
    path.write_text(json.dumps(document))
    return path


def run(path: Path) -> dict[str, Any]:
    """Run a workflow; return the seconds it took and what came out. A search that nothing wins counts as well."""
    environment = {**os.environ, "DRUPE_LOCKS": str(path.parent / "locks")}
    environment.pop("OMP_NUM_THREADS", None)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "drupe", "run", str(path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    if done.returncode not in (0, 3):
        raise SystemExit(f"the run ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    (target,) = json.loads((path.parent / "out" / "drupe.json").read_text())["targets"].values()
    assert [c["state"] for c in target["candidates"]] == ["complete"] * 4, target
    winner = next((c for c in target["candidates"] if c["number"] == target["winner"]), None)
    return {
        "seconds": seconds,
        "search": target["search"],
        "status": target["status"],
        "winner": winner and winner["point"],
        "model": winner and winner["model"],
    }


def main() -> None:
    """Run both and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few training steps and samples: does it run at all?")
    parser.add_argument("--keep", type=Path, help="keep the stores and outputs below this new folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = {}
        for workers in (1, 2):
            folder = (arguments.keep or Path(scratch)) / f"{workers} workers"
            results[workers] = found = run(write(folder, workers, small=arguments.small))
            print(
                f"{workers} worker{'s' * (workers > 1)} of one thread: {found['seconds']:.0f} s, of them in trials "
                f"{found['search']['seconds']:.0f} s, exclusive {found['search']['exclusive_share']:.1%} of these; "
                f"{found['status']}, winner {found['winner']}, model {(found['model'] or '–')[:12]}",
                flush=True,
            )
    one, two = results[1], results[2]
    ratio = two["seconds"] / one["seconds"]
    same = two["winner"] == one["winner"]
    print(f"ratio {ratio:.2f} (at most {LIMIT}); {'the same winner' if same else 'ANOTHER WINNER'}")
    if not same or (ratio > LIMIT and not arguments.small):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

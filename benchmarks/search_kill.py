"""kill -9 at random moments, on the only worker and on one of two: after resuming, no trial is lost or doubled.

python benchmarks/search_kill.py [--rounds 50]
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.search.synthetic import listing, open_study, run  # noqa: E402

TRIALS, PAUSE = 12, 0.03


def worker(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.search.synthetic", str(folder), "tpe", str(TRIALS), str(PAUSE), ""]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def finish(folder: Path) -> None:
    if worker(folder).wait(timeout=120) != 0:
        raise SystemExit(f"the resumed run in {folder} failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    draw = random.Random(1)
    kills = midway = same = exact = 0
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = open_study(Path(scratch) / "undisturbed", sampler="tpe", max_trials=TRIALS)
        run(undisturbed)
        expected, winner = listing(undisturbed), undisturbed.select()
        undisturbed.close()
        for index in range(rounds):
            folder = Path(scratch) / str(index)
            workers = [worker(folder) for _ in range(1 + index % 2)]
            time.sleep(draw.uniform(0.3, 1.3))
            midway += workers[0].poll() is None
            workers[0].send_signal(signal.SIGKILL)
            kills += 1
            for process in workers:
                process.wait(timeout=120)
            finish(folder)
            study = open_study(folder, sampler="tpe", max_trials=TRIALS)
            told = listing(study)
            exact += [number for number, _ in told] == list(range(TRIALS)) and len(study._trials()) == TRIALS
            if index % 2 == 0:
                same += told == expected and study.select() == winner
            study.close()
    alone = (rounds + 1) // 2
    print(
        f"{kills} kills, {midway} of them while the worker ran; exactly {TRIALS} trials afterwards: {exact} of {rounds}"
    )
    print(f"one worker: the same trials and winner as undisturbed: {same} of {alone}")
    if exact < rounds or same < alone:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

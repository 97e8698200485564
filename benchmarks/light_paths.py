"""How long the light paths take, as whole processes: medians over several runs.

Limits: `drupe --help` 150 ms, `drupe validate` 400 ms on the example, and the example again with every step and
measurement cached 1.5 s (run it once before: `drupe run examples/tone/drupe.yaml`).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "tone" / "drupe.yaml"


def median_seconds(command: list[str], runs: int) -> tuple[float, float, float]:
    """Return (minimum, median, maximum) of the wall seconds of `runs` runs, after one that does not count."""
    seconds = []
    for index in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        if index:
            seconds.append(time.perf_counter() - started)
    return min(seconds), statistics.median(seconds), max(seconds)


def main() -> int:
    """Print a row per path; return 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11)
    arguments = parser.parse_args()
    drupe = str(Path(sys.executable).with_name("drupe"))
    rows = [
        ("drupe --help", [drupe, "--help"], 0.150),
        ("drupe validate (example)", [drupe, "validate", str(EXAMPLE)], 0.400),
        ("drupe passes", [drupe, "passes"], 0.300),
        ("example, all cached", [drupe, "run", "--quiet", str(EXAMPLE)], 1.5),
    ]
    broken = 0
    print(f"{'command':28} {'min s':>8} {'median s':>9} {'max s':>8} {'limit s':>8}")
    for name, command, limit in rows:
        low, middle, high = median_seconds(command, arguments.runs)
        broken |= middle > limit
        print(f"{name:28} {low:8.3f} {middle:9.3f} {high:8.3f} {limit:8.3f}{'  ABOVE' if middle > limit else ''}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())

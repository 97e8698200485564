"""The store under stress, in short: several processes, kill -9, a full disk, a folder that machines share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_is_lost_doubled_or_corrupt() -> None:
    """The benchmark at its short size; it compares every file, and ends with `drupe cache verify`."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.store_stress", "--processes", "4", "--steps", "40", "--kills", "4"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:1] in "kds"}
    assert {"kill", "shared"} <= set(rows)
    for name, (_, _, begun, full, failed, lost, doubled, corrupt, *_) in rows.items():
        if name != "scenario":
            assert int(begun) >= 40
            assert failed == lost == corrupt == "0"
            assert doubled == "0" or name == "shared"
            assert int(full) > 0 or name != "disk"

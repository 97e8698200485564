"""A/A comparisons of latency while another process burns a core: false alarms, and a planted slowdown found.

python benchmarks/statistics_latency.py [--comparisons 100] [--pairs 40] [--no-burn]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from drupe.core.statistics.timing import Comparison, compare_times

_MATRIX = np.random.default_rng(0).normal(size=(160, 160)).astype(np.float32)


def work(amount: int) -> float:
    """Return the seconds that `amount` multiplications took."""
    started = time.perf_counter()
    matrix = _MATRIX
    for _ in range(amount):
        matrix = np.tanh(matrix @ _MATRIX)
    return time.perf_counter() - started


@contextlib.contextmanager
def burning(on: bool) -> Iterator[None]:
    """Keep one core busy meanwhile."""
    if not on:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compare(pairs: int, amount: int, other: int) -> Comparison:
    """Time two amounts of work in turn; who goes first alternates."""
    ours, theirs = [], []
    for _ in range(5):
        work(amount)
    for index in range(pairs):
        if index % 2:
            theirs.append(work(other))
            ours.append(work(amount))
        else:
            ours.append(work(amount))
            theirs.append(work(other))
    return compare_times(ours, theirs)


def one_after_the_other(pairs: int, amount: int) -> bool:
    """Whether the usual way alarms: all of one, then all of the other, and Welch's t test on the means."""
    from scipy import stats

    first = [work(amount) for _ in range(pairs)]
    second = [work(amount) for _ in range(pairs)]
    return bool(stats.ttest_ind(first, second, equal_var=False).pvalue < 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--no-burn", action="store_true")
    arguments = parser.parse_args()
    amount = 20
    with burning(not arguments.no_burn):
        alarms = naive = 0
        noise, planted = [], []
        for index in range(arguments.comparisons):
            comparison = compare(arguments.pairs, amount, amount)
            alarms += comparison.differs
            noise.append(comparison.noise)
            naive += one_after_the_other(arguments.pairs, amount)
            if index % max(1, arguments.comparisons // 20) == 0 and len(planted) < 20:
                # In between, so that both kinds meet the same noise.
                planted.append(compare(arguments.pairs, amount + 1, amount))
        found = sum(c.differs and c.ratio > 1 for c in planted)
    print(f"{arguments.pairs} pairs each; a pair varies by {np.median(noise):.1%} (median)")
    print(f"A/A: {alarms} false alarms in {arguments.comparisons} comparisons at the 5 % level")
    print(f"the same, one model after the other and Welch's t test: {naive} false alarms")
    print(f"planted slowdown of {1 / amount:.0%}: found in {found} of {len(planted)}")
    print("an example: " + planted[0].text())


if __name__ == "__main__":
    main()

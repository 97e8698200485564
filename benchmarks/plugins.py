"""What many plugins cost: 100 installed plugins of ten passes each, as whole processes, medians over several runs.

Limits: `drupe passes` 300 ms and `drupe --help` 200 ms, with the index on disk as any second call finds it. The first
call after an install, which imports every plugin once, is shown beside them and has no limit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drupe.testing import install_plugin

PLUGIN = """
from drupe import PassSpec, hookimpl


@hookimpl
def drupe_passes():
    return [
        PassSpec(
            name=f"Pass{number}x{{index}}",
            target=f"acme_{number}.passes:Pass{{index}}",
            summary="What this pass does, in the words of its author.",
            accepts={{"onnx"}},
            produces="onnx",
            accelerators={{"cpu", "npu"}},
            requires=("acme-sdk>=2",),
            key_packages=("onnx", "acme-sdk"),
        )
        for index in range(10)
    ]
"""


def install(folder: Path, count: int) -> None:
    """Write `count` distributions of one plugin with ten passes each."""
    for number in range(count):
        files = {f"acme_{number}/__init__.py": "", f"acme_{number}/plugin.py": PLUGIN.format(number=number)}
        install_plugin(folder, f"acme-{number}", files, plugins={f"acme-{number}": f"acme_{number}.plugin"})


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the wall seconds of one run, and those that the processor worked for it."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime


def main() -> int:
    """Print a row per command; return 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--plugins", type=int, default=100)
    arguments = parser.parse_args()
    drupe = str(Path(sys.executable).with_name("drupe"))
    broken = False
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder) / "site", arguments.plugins)
        environment = {**os.environ, "PYTHONPATH": f"{folder}/site", "DRUPE_HOME": f"{folder}/home"}
        first, _ = timed([drupe, "passes"], environment)
        listed = subprocess.run([drupe, "passes"], check=True, capture_output=True, text=True, env=environment).stdout
        found = sum(line.startswith("Pass") for line in listed.splitlines())
        print(f"{arguments.plugins} plugins, {found} passes; first call {first:.3f} s; load {os.getloadavg()[0]:.1f}")
        print(f"{'command':16} {'min s':>8} {'median s':>9} {'max s':>8} {'processor s':>12} {'limit s':>8}")
        for command, limit in ((["passes"], 0.300), (["--help"], 0.200), (["plugins"], 0.300)):
            taken = [timed([drupe, *command], environment) for _ in range(arguments.runs)]
            wall, worked = zip(*taken, strict=True)
            middle = statistics.median(wall)
            broken |= middle > limit
            name = f"drupe {' '.join(command)}"
            print(f"{name:16} {min(wall):8.3f} {middle:9.3f} {max(wall):8.3f}", end="")
            print(f" {statistics.median(worked):12.3f} {limit:8.3f}{'  ABOVE' if middle > limit else ''}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())

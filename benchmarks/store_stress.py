"""The store under stress: many processes, random kill -9, a disk that fills up, a folder that machines share.

    python -m benchmarks.store_stress                 4 processes, 60 steps: a few seconds
    python -m benchmarks.store_stress --full          16 processes, 2,000 steps
    python -m benchmarks.store_stress --only disk --keep /tmp/there

Every process wants every step, in an order of its own. A step reads what another one made, writes a file of its own and
one that others write too, and takes a record. Processes are killed at random moments and started anew until all steps
are there. Then each step's files are compared with what they must hold, and `drupe cache verify` has the last word.

kill: one folder, and a collection of garbage going on all the time. disk: a file system of a fraction of the size that
is needed, which grows once it is full (needs root). shared: two machines, each with a folder of its own in front of a
store below a URL, whose leases promise one result, possibly computed twice.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from drupe.core.disk import is_full  # noqa: E402
from drupe.core.errors import StoreError  # noqa: E402
from drupe.core.model import Model  # noqa: E402
from drupe.core.store import Store  # noqa: E402
from drupe.core.store.mirror import MirrorStore  # noqa: E402
from drupe.core.store.upstream import Upstream  # noqa: E402

_LEASE_SECONDS = 1.0
"""Short, so that the steps of the killed are taken over within seconds."""
_CALM = 5
"""So many times fewer kills where those who come after wait for a lease to run out."""
_SHARED = 10
"""So many different files are what the second file of a step may be."""
_COLUMNS = ("begun", "disk full", "failed", "lost", "doubled", "corrupt", "left over", "collected")
_FULL_MARKS = 20
"""So often the disk is to be found full before it grows."""


def key_of(step: int) -> str:
    """Return a step's key."""
    return hashlib.sha256(f"step {step}".encode()).hexdigest()


def own_bytes(step: int) -> bytes:
    """Return what a step's own file must hold: 1 to 5 kB."""
    block = hashlib.sha256(f"file {step}".encode()).digest()
    return block * (32 + step % 128)


def shared_bytes(step: int) -> bytes:
    """Return what a step's second file must hold, the same for many steps."""
    return f"shared {step % _SHARED}".encode() * 50


class Journal:
    """What happened, a line each, from all processes: a line is written at once or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, what: str, step: int) -> None:
        """Add a line."""
        os.write(self._handle, f"{what} {step}\n".encode())

    def lines(self) -> list[tuple[str, int]]:
        """Return all lines so far."""
        pairs = (line.split() for line in self.path.read_text().splitlines())
        return [(what, int(step)) for what, step in pairs]


def do(store: Store, step: int, journal: Journal) -> None:
    """Do a step unless it is done, as an engine does."""
    key = key_of(step)
    if store.get(key) is not None:
        return
    before = step // 2
    if step:
        do(store, before, journal)
    with store.lock(key):
        if store.get(key) is not None:
            return
        journal.note("begun", step)
        job = store.new_job_dir(f"step-{step}")
        try:
            if step:
                record = store.get(key_of(before))
                assert record is not None, f"step {before} is gone again"
                store.stage(Model.from_json(record["model"]), job / "inputs")
                if (job / "inputs" / "own").read_bytes() != own_bytes(before):
                    journal.note("corrupt", before)
            (store.checkpoint_dir(key) / "state").write_text("half")
            outputs = job / "outputs"
            outputs.mkdir()
            (outputs / "own").write_bytes(own_bytes(step))
            (outputs / "shared").write_bytes(shared_bytes(step))
            model = Model.from_dir("blob", outputs)
            store.publish(model, outputs)
            record = {"key": key, "name": f"step {step}", "seconds": 0.0, "model": model.to_json()}
            store.put(key, record)
            journal.note("finished", step)
        finally:
            store.remove_job_dir(job)


def work(opened: Callable[[], Store], steps: int, journal: Journal, seed: int) -> None:
    """Do every step that is not done, in an order of its own; where the disk is full, try again."""
    order = list(range(steps))
    random.Random(seed).shuffle(order)
    store: Store | None = None
    for step in order:
        while True:
            try:
                store = store or opened()
                do(store, step, journal)
                break
            except (StoreError, OSError) as error:
                full = "make room" in str(error) or (isinstance(error, OSError) and is_full(error))
                if not full:
                    raise
                journal.note("full", step)
                time.sleep(0.05)


def collect(opened: Callable[[], Store]) -> None:
    """Collect garbage again and again; ends by being killed."""
    store = opened()
    while True:
        store.gc()
        time.sleep(0.3)


@dataclass
class Scenario:
    """stores: what each machine opens. collecting: whether garbage is collected meanwhile. grow: called once, when the
    disk was found full often enough. root: the store that is checked, a folder or a URL."""

    name: str
    stores: Sequence[Callable[[], Store]]
    root: str
    collecting: bool = False
    grow: Callable[[], None] | None = None


def stress(
    scenario: Scenario, processes: int, steps: int, kills_a_second: float, journal: Journal
) -> tuple[int, float]:
    """Run the scenario until every step was done by somebody; return the kills and the seconds."""
    draw = random.Random(steps)
    started = time.monotonic()
    kills = number = 0
    alive: dict[int, int] = {}
    grown = scenario.grow is None

    def start(slot: int) -> None:
        nonlocal number
        number += 1
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if slot == processes:
                    collect(scenario.stores[0])
                work(scenario.stores[slot % len(scenario.stores)], steps, journal, number)
                code = 0
            except BaseException as error:
                print(f"{scenario.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        alive[pid] = slot

    for slot in range(processes + scenario.collecting):
        start(slot)
    done = 0
    next_kill = time.monotonic() + draw.expovariate(kills_a_second)
    while done < processes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            slot = alive.pop(pid)
            if os.waitstatus_to_exitcode(status) == 0:
                done += 1
            else:
                # Killed, or failed: both show in the table. A process that fails by itself is not started again.
                if os.waitstatus_to_exitcode(status) > 0:
                    journal.note("failed", slot)
                    done += 1
                    continue
                start(slot)
            continue
        if not grown and sum(what == "full" for what, _ in journal.lines()) >= _FULL_MARKS:
            assert scenario.grow is not None
            scenario.grow()
            grown = True
        # Killing goes on until most of the steps are done: the rest shows that what was left can be gone on with.
        if time.monotonic() >= next_kill and alive:
            next_kill = time.monotonic() + draw.expovariate(kills_a_second)
            if sum(what == "finished" for what, _ in journal.lines()) < steps * 0.95:
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(list(alive)), signal.SIGKILL)
                    kills += 1
        time.sleep(0.005)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return kills, time.monotonic() - started


def judge(scenario: Scenario, steps: int, journal: Journal) -> dict[str, int]:
    """Compare what is there with what must be there, through a store opened anew."""
    store = scenario.stores[0]()
    lost = corrupt = 0
    for step in range(steps):
        record = store.get(key_of(step))
        if record is None:
            lost += 1
            continue
        model = Model.from_json(record["model"])
        held = {name: store.read_bytes(digest) for name, digest in model.files.items()}
        corrupt += held != {"own": own_bytes(step), "shared": shared_bytes(step)}
    finished: set[int] = set()
    doubled: set[int] = set()
    counts: Counter[str] = Counter()
    for what, step in journal.lines():
        counts[what] += 1
        if what == "begun" and step in finished:
            doubled.add(step)
        if what == "finished":
            doubled |= {step} & finished
            finished.add(step)
    local = store.root
    left = sum(1 for _ in (local / "tmp").iterdir()) + sum(1 for _ in (local / "checkpoints").iterdir())
    blobs = len(store.sizes())
    store.gc()
    return {
        "begun": counts["begun"],
        "full": counts["full"],
        "failed": counts["failed"],
        "lost": lost,
        "doubled": len(doubled),
        "corrupt": corrupt + counts["corrupt"],
        "left": left,
        "collected": blobs - len(store.sizes()),
    }


def scenarios(folder: Path, names: Sequence[str], steps: int) -> list[Scenario]:
    """Prepare the scenarios; the small disk only where it can be mounted."""
    found = []
    if "kill" in names:
        root = folder / "kill"
        found.append(Scenario("kill", [lambda: Store(root)], str(root), collecting=True))
    if "disk" in names:
        disk = folder / "disk"
        disk.mkdir()
        # A file takes whole pages, and a step a record, its files and, while it is done, a folder.
        needed = steps * 16
        options = f"size={max(128, needed // 3)}k"
        if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]).returncode:
            print("disk: left out; mounting a small file system needs root", file=sys.stderr)
        else:
            grow = ["mount", "-o", f"remount,size={needed * 4 + 16384}k", str(disk)]
            found.append(
                Scenario(
                    "disk",
                    [lambda: Store(disk / "store")],
                    str(disk / "store"),
                    grow=lambda: subprocess.run(grow, check=True) and None,
                )
            )
    if "shared" in names:
        url = f"file://{folder}/shared"
        machines = [_machine(folder / name, url) for name in ("one", "two")]
        found.append(Scenario("shared", machines, url))
    return found


def _machine(root: Path, url: str) -> Callable[[], Store]:
    return lambda: MirrorStore(root, Upstream(url, lease_seconds=_LEASE_SECONDS))


def main() -> None:
    """Run the scenarios and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kills", type=float, default=5.0, help="kill -9 a second, on average")
    parser.add_argument("--only", nargs="*", default=["kill", "disk", "shared"])
    parser.add_argument("--keep", type=Path, help="leave the stores below this folder, which must not be there yet")
    parser.add_argument("--full", action="store_true", help="16 processes and 2,000 steps")
    arguments = parser.parse_args()
    processes, steps = (16, 2000) if arguments.full else (arguments.processes, arguments.steps)
    if arguments.keep:
        arguments.keep.mkdir(parents=True)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="drupe-stress-"))
    bad = []
    print(f"{processes} processes, {steps} steps")
    print(f"scenario  seconds  kills  {'  '.join(_COLUMNS)}")
    try:
        for scenario in scenarios(folder, arguments.only, steps):
            journal = Journal(folder / f"{scenario.name}.journal")
            kills_a_second = arguments.kills / (_CALM if scenario.name == "shared" else 1)
            kills, seconds = stress(scenario, processes, steps, kills_a_second, journal)
            found = judge(scenario, steps, journal)
            columns = zip(_COLUMNS, found.values(), strict=True)
            cells = " ".join(f"{value:{len(name) + 1}}" for name, value in columns)
            print(f"{scenario.name:8} {seconds:8.1f} {kills:6} {cells}", flush=True)
            wrong = found["lost"] + found["corrupt"] + found["failed"]
            # Leases promise one result for a step, not that it is computed once.
            wrong += found["doubled"] if scenario.name != "shared" else 0
            verified = subprocess.run([sys.executable, "-m", "drupe", "cache", "verify", scenario.root], check=False)
            if wrong or verified.returncode or (scenario.grow and not found["full"]):
                bad.append(scenario.name)
    finally:
        if not arguments.keep:
            subprocess.run(["umount", folder / "disk"], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(folder, ignore_errors=True)
    if bad:
        sys.exit(f"not as it must be: {', '.join(bad)}")


if __name__ == "__main__":
    main()

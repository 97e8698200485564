"""The store under kill -9 and a full disk at every operation on the file system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_HARNESS = '''
"""Runs one scenario again and again in forked children, each time stopped one operation later."""

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

from drupe.core.digests import file_digest
from drupe.core.errors import StoreError
from drupe.core.model import Model
from drupe.core.store import Store

MODE, BASE = sys.argv[1], Path(sys.argv[2])
MAKING = ("os.mkdir", "os.rename", "os.link", "os.symlink")
CHANGING = (*MAKING, "os.remove", "os.rmdir", "os.chmod", "os.utime", "fcntl.flock", "fcntl.ioctl")
EARLIER, KEY = "e" * 64, "a" * 64
TEXTS = {"one": "1" * 5000, "two": "2" * 5000, "sub/three": "3" * 5000}
state = {"count": 0, "stop": 0}


def hook(event, arguments):
    if not state["stop"]:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_WRONLY)
    if not (writes or event in (CHANGING if MODE == "kill" else MAKING)):
        return
    state["count"] += 1
    if MODE == "kill" and state["count"] == state["stop"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if MODE == "full" and state["count"] >= state["stop"] or MODE == "hiccup" and state["count"] == state["stop"]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


sys.addaudithook(hook)


def make(folder, texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Model.from_dir("text", folder)


def scenario(root, outputs, model):
    """What an engine does with a step."""
    store = Store(root)
    with store.lock(KEY):
        if store.get(KEY) is None:
            job = store.new_job_dir("job")
            checkpoint = store.checkpoint_dir(KEY)
            kept, state["stop"] = state["stop"], 0
            (checkpoint / "state").touch()  # by a pass, whose errors are not the store's
            state["stop"] = kept
            store.publish(model, outputs)
            store.put(KEY, {"key": KEY, "model": model.to_json()})
            store.remove_job_dir(job)
    staged = store.new_job_dir("staged")
    store.stage(model, staged)
    store.export(model, root.parent / "exported")
    store.remove_job_dir(staged)


def fresh(root, outputs):
    if root.parent.exists():
        shutil.rmtree(root.parent)
    store = Store(root)
    earlier = make(outputs, {"before": "b" * 5000})
    store.publish(earlier, outputs)
    store.put(EARLIER, {"key": EARLIER, "model": earlier.to_json()})
    return make(outputs, TEXTS)


def check(root, what):
    """Nothing is lost, nothing is corrupt."""
    store = Store(root)
    assert store.verify() == [], what
    assert store.get(EARLIER) is not None, what
    record = store.get(KEY)
    if record is not None:
        for name, digest in record["model"]["files"].items():
            assert store.read_bytes(digest).decode() == TEXTS[name], what
    assert not [f for f in (root / "drivers").iterdir() if f != store._drivers._own], what
    exported = root.parent / "exported"
    if exported.exists():
        assert {p.relative_to(exported).as_posix(): p.read_text() for p in exported.rglob("*") if p.is_file()} == TEXTS


def child(root, outputs, model, stop):
    state.update(count=0, stop=stop)
    try:
        scenario(root, outputs, model)
    except StoreError as error:
        os._exit(3 if "make room" in str(error) else 4)
    except BaseException as error:
        print(f"{stop}: {type(error).__name__}: {error}", flush=True)
        os._exit(5)
    os._exit(0)


ends = set()
for stop in range(1, 1000):
    root, outputs = BASE / str(stop) / "store", BASE / str(stop) / "outputs"
    model = fresh(root, outputs)
    pid = os.fork()
    if pid == 0:
        child(root, outputs, model, stop)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in ({-9, 0} if MODE == "kill" else {3, 0}), (stop, code)
    check(root, f"{MODE} at operation {stop}")
    # The step runs again, its outputs anew.
    for name in TEXTS:
        (outputs / name).unlink(missing_ok=True)
    again = make(outputs, TEXTS)
    scenario(root, outputs, again)
    check(root, f"after {MODE} at operation {stop}")
    assert Store(root).get(KEY) is not None
    assert (root.parent / "exported" / "one").read_text() == TEXTS["one"]
    assert sorted(p.name for p in root.parent.iterdir()) == ["exported", "outputs", "store"]
    shutil.rmtree(root.parent)
    ends.add(code)
    if code == 0 and MODE != "hiccup" or stop > 400:
        break
    if code == 0 and MODE == "hiccup":
        # A failure that costs nothing (a lock file's own folder, a link that becomes a copy) is no end.
        state["calm"] = state.get("calm", 0) + 1
        if state["calm"] > 30:
            break
print(f"{stop} operations", sorted(ends))
'''


def harness(mode: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _HARNESS, mode, str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("mode", ["kill", "full", "hiccup"])
def test_nothing_is_lost_or_corrupt_whichever_operation_is_the_last(mode: str, tmp_path: Path) -> None:
    """Every operation in turn: killed there, failing from there on, failing once. The next run finishes the step."""
    said = harness(mode, tmp_path)
    assert int(said.split()[0]) > 30
    assert ("-9" if mode == "kill" else "3") in said


_FILL = """
import sys
from pathlib import Path
from drupe.core.errors import StoreError
from drupe.core.model import Model
from drupe.core.store import Store

root, outside = Path(sys.argv[1]), Path(sys.argv[2])
store = Store(root)
kept = 0
for n in range(100):
    outputs = outside / str(n)
    outputs.mkdir(parents=True)
    (outputs / "file").write_bytes(bytes([n]) * 100_000)
    model = Model.from_dir("text", outputs)
    try:
        store.publish(model, outputs)
        store.put(f"{n:064}", {"key": f"{n:064}", "model": model.to_json()})
    except StoreError as error:
        print(error)
        break
    kept += 1
assert store.verify() == []
assert sum(1 for _ in store.records()) == kept
assert all(store.get(f"{n:064}") for n in range(kept))
assert not list((root / "tmp").glob("*[0-9a-f]"))
done = store.gc(max_bytes=300_000)
assert done.records > 0
store.publish(model, outputs)
store.put("f" * 64, {"key": "f" * 64, "model": model.to_json()})
print("kept", kept)
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a file system of one megabyte: the step fails with a message that says what to do, and room helps."""
    small = tmp_path / "small"
    small.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _FILL, small / "store", tmp_path / "outside"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "drupe cache gc" in done.stdout
        assert int(done.stdout.split("kept")[1]) > 3
    finally:
        subprocess.run(["umount", small], check=True)

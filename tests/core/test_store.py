"""The store: records and blobs, staging, exports, changed inputs, locks, collection, verification."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.core.digests import file_digest
from drupe.core.errors import Interrupted, StoreError
from drupe.core.model import Model
from drupe.core.store import Store
from drupe.core.store.files import stamp

KEY = "a" * 64
OTHER = "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(folder: Path, **files: str) -> Model:
    """Write files below folder and return their model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return Model.from_dir("text", folder)


def put(store: Store, folder: Path, key: str = KEY, **files: str) -> Model:
    """Publish a model and its record."""
    model = made(folder, **files)
    store.publish(model, folder)
    store.put(key, {"key": key, "model": model.to_json()})
    return model


def in_another_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_a_record_comes_back(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "out", text="hello")
    record = store.get(KEY)
    assert record is not None
    assert Model.from_json(record["model"]) == model
    assert store.read_bytes(model.files["text"]) == b"hello"
    assert store.get(OTHER) is None


def test_a_record_without_one_of_its_blobs_is_absent(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "out", text="hello")
    store.evict(model.files["text"])
    assert store.get(KEY) is None


def test_a_record_that_is_no_json_is_absent_and_can_be_replaced(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path / "out", text="hello")
    (record,) = (store.root / "steps").glob("*/*.json")
    record.write_text("{ half")
    assert store.get(KEY) is None
    put(store, tmp_path / "again", text="hello")
    assert store.get(KEY) is not None


def test_publishing_takes_the_files_away_and_keeps_what_is_there(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path / "out", text="hello")
    assert not (tmp_path / "out" / "text").exists()
    derived = Model("text", {"text": file_digest_of("hello"), "more": file_digest_of("more")})
    made(tmp_path / "next", more="more")
    store.publish(derived, tmp_path / "next")
    assert store.read_bytes(derived.files["more"]) == b"more"


def file_digest_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_that_arrived_damaged_is_refused(store: Store, tmp_path: Path) -> None:
    model = made(tmp_path / "out", text="hello")
    (tmp_path / "out" / "text").write_text("hullo")
    with pytest.raises(StoreError, match="arrived damaged"):
        store.publish(model, tmp_path / "out", verify=True)
    assert not store.has(model.files["text"])


def test_a_file_that_was_not_made_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"text .* neither made nor stored"):
        store.publish(Model("text", {"text": "0" * 64}), tmp_path)


def test_staged_files_are_links_that_cannot_be_written_by_their_mode(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "out", text="hello")
    staged = store.stage(model, tmp_path / "job")
    file = staged.folder / "text"
    assert file.stat().st_ino == store.blob_path(model.files["text"]).stat().st_ino
    assert not file.stat().st_mode & 0o222
    assert store.verify_inputs(model, tmp_path / "job") == []


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_changed_input_is_named_and_evicted_where_it_was_the_blob(
    store: Store, tmp_path: Path, hard_links: bool
) -> None:
    model = put(store, tmp_path / "out", text="hello", other="untouched")
    store.stage(model, tmp_path / "job", hard_links=hard_links)
    file = tmp_path / "job" / "text"
    file.chmod(0o644)
    file.write_text("hullo")
    assert store.verify_inputs(model, tmp_path / "job") == ["text"]
    assert store.has(model.files["text"]) is not hard_links
    assert store.has(model.files["other"])
    if not hard_links:
        assert store.read_bytes(model.files["text"]) == b"hello"


def test_an_input_that_was_only_touched_stays(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "out", text="hello")
    store.stage(model, tmp_path / "job")
    os.utime(tmp_path / "job" / "text")
    assert store.verify_inputs(model, tmp_path / "job") == []
    assert store.verify_inputs(model, tmp_path / "job") == []
    assert store.has(model.files["text"])


def test_an_input_that_was_replaced_or_removed_is_named(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "out", text="hello", other="there")
    store.stage(model, tmp_path / "job")
    (tmp_path / "job" / "text").unlink()
    (tmp_path / "job" / "text").write_text("another")
    (tmp_path / "job" / "other").unlink()
    assert sorted(store.verify_inputs(model, tmp_path / "job")) == ["other", "text"]
    assert store.read_bytes(model.files["text"]) == b"hello"


def test_an_export_is_the_users_own(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "out", text="hello")
    target = tmp_path / "model"
    store.export(model, target)
    (target / "text").write_text("edited")
    assert store.read_bytes(model.files["text"]) == b"hello"
    store.export(model, target)
    assert (target / "text").read_text() == "hello"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".model")] == []


def test_a_failed_export_leaves_the_earlier_one(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "out", text="hello")
    store.export(model, tmp_path / "model")
    with pytest.raises(StoreError, match="can't be written"):
        store.export(Model("text", {"text": "0" * 64}), tmp_path / "model")
    assert (tmp_path / "model" / "text").read_text() == "hello"


def test_the_lock_of_a_key_is_held_by_one(store: Store) -> None:
    with store.lock(KEY):
        assert (
            in_another_process(
                """
            import sys, time
            from pathlib import Path
            from drupe.core.errors import Interrupted
            from drupe.core.store import Store
            end = time.monotonic() + 0.5
            try:
                with Store(Path(sys.argv[1])).lock(sys.argv[2], lambda: time.monotonic() > end):
                    pass
            except Interrupted:
                sys.exit(7)
            """,
                store.root,
                KEY,
            ).returncode
            == 7
        )
        with store.lock(OTHER):
            pass
    with store.lock(KEY):
        pass


def test_waiting_for_a_lock_can_be_cancelled(store: Store) -> None:
    asked = threading.Event()
    with store.lock(KEY):
        threading.Timer(0.2, asked.set).start()
        with pytest.raises(Interrupted, match=KEY[:12]), store.lock(KEY, asked.is_set):
            pass


def test_a_lock_ends_with_its_process(store: Store) -> None:
    done = in_another_process(
        """
        import os, signal, sys
        from pathlib import Path
        from drupe.core.store import Store
        with Store(Path(sys.argv[1])).lock(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        store.root,
        KEY,
    )
    assert done.returncode == -9
    with store.lock(KEY, lambda: True):
        pass


def test_a_lock_file_that_was_collected_keeps_nobody_out_and_lets_nobody_in(store: Store) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock(KEY):
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    held.wait(10)
    store.gc()
    with pytest.raises(Interrupted), store.lock(KEY, lambda: True):
        pass
    release.set()
    holder.join(30)
    store.gc()
    assert not (store.root / "locks" / KEY).exists()
    with store.lock(KEY):
        pass


def test_the_checkpoint_goes_when_the_step_is_done(store: Store, tmp_path: Path) -> None:
    folder = store.checkpoint_dir(KEY)
    (folder / "state").write_text("half way")
    assert store.checkpoint_dir(KEY) == folder
    assert (folder / "state").exists()
    put(store, tmp_path / "out", text="hello")
    assert not folder.exists()


def test_job_folders_of_a_dead_driver_go_and_those_of_a_living_one_stay(store: Store) -> None:
    mine = store.new_job_dir("mine")
    done = in_another_process(
        """
        import os, signal, sys
        from pathlib import Path
        from drupe.core.store import Store
        store = Store(Path(sys.argv[1]))
        folder = store.new_job_dir("theirs")
        print(folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        store.root,
    )
    theirs = Path(done.stdout.strip())
    assert theirs.is_dir()
    Store(store.root)
    assert not theirs.exists()
    assert mine.is_dir()


def test_a_driver_that_ends_leaves_no_folder(store: Store) -> None:
    in_another_process(
        """
        import sys
        from pathlib import Path
        from drupe.core.store import Store
        store = Store(Path(sys.argv[1]))
        store.new_job_dir("job")
        """,
        store.root,
    )
    assert list((store.root / "drivers").iterdir()) == []


def test_the_least_recently_used_goes_first(store: Store, tmp_path: Path) -> None:
    keys = [str(n) * 64 for n in range(4)]
    for n, key in enumerate(keys):
        put(store, tmp_path / key[:2], key, text=str(n) * 1000, shared="s" * 1000)
        os.utime(store.root / "steps" / key[:2] / f"{key}.json", (n, n))
    assert store.get(keys[0]) is not None  # used now, so the last to go
    done = store.gc(max_bytes=3000)
    assert [store.get(key) is not None for key in keys] == [True, False, False, True]
    assert (done.records, done.blobs, done.freed, done.left) == (2, 2, 2000, 3000)
    assert store.size() == 3000


def test_what_was_not_used_for_long_goes(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path / "old", KEY, text="old")
    put(store, tmp_path / "new", OTHER, text="new")
    day_ago = time.time() - 86400
    os.utime(store.root / "steps" / "aa" / f"{KEY}.json", (day_ago, day_ago))
    assert store.gc(older_than=3600).records == 1
    assert store.get(KEY) is None
    assert store.get(OTHER) is not None


def test_what_a_running_driver_may_use_is_not_collected(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path / "out", text="hello")
    os.utime(store.root / "steps" / "aa" / f"{KEY}.json", (0, 0))
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from drupe.core.store import Store\n"
            "store = Store(Path(sys.argv[1])); store.get(sys.argv[2]); print('used', flush=True); sys.stdin.read()",
            str(store.root),
            KEY,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert driver.stdout is not None
    driver.stdout.readline()
    assert store.gc(max_bytes=0).records == 0
    driver.communicate()
    assert store.gc(max_bytes=0).records == 1
    assert store.size() == 0


def test_damaged_blobs_are_found_named_and_removed(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "out", text="hello", other="fine")
    blob = store.blob_path(model.files["text"])
    blob.chmod(0o644)
    blob.write_text("hullo")
    assert store.verify() == [model.files["text"]]
    assert store.verify() == []
    assert store.get(KEY) is None
    assert store.has(model.files["other"])


def test_a_store_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be opened"):
        Store(tmp_path / "file" / "store")


def _take(root: str, turns: int) -> None:
    store = Store(Path(root))
    for turn in range(turns):
        key = f"{turn:064}"
        with store.lock(key):
            if store.get(key) is None:
                with (store.root / "log").open("a") as log:
                    log.write(f"{turn}\n")
                digest = store.put_bytes(str(turn).encode())
                store.put(key, {"key": key, "model": None, "blobs": [digest]})


def test_two_processes_never_do_the_same_step_twice(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_take, args=(str(store.root), 30), daemon=True) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted((store.root / "log").read_text().split(), key=int) == [str(n) for n in range(30)]


_names = st.from_regex(r"[a-zA-ZäÖ漢 _.-]{1,20}", fullmatch=True).filter(lambda n: n.strip(" .") == n and n)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(_names, st.binary(max_size=200), min_size=1, max_size=5))
def test_what_is_published_is_what_is_staged_and_exported(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder / "store")
    (folder / "out").mkdir()
    for name, data in files.items():
        (folder / "out" / name).write_bytes(data)
    model = Model.from_dir("any", folder / "out")
    store.publish(model, folder / "out")
    store.stage(model, folder / "staged")
    store.export(model, folder / "exported")
    for place in ("staged", "exported"):
        assert {p.name: p.read_bytes() for p in (folder / place).iterdir()} == files
    assert all(file_digest(store.blob_path(d)) == d for d in model.files.values())


def test_a_file_that_is_about_to_be_published_is_not_swept(store: Store, tmp_path: Path) -> None:
    """A collection may come between the stamp that a blob has, the first second of 2000, and its rename."""
    waiting = store.root / "tmp" / "waiting"
    waiting.write_text("about to be published")
    stamp(waiting)
    store.gc()
    assert waiting.exists()

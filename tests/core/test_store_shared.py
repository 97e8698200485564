"""Stores below a URL: local, memory, and S3 against moto's server; leases in place of locks."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from drupe.core.errors import ConfigError, Interrupted, StoreError
from drupe.core.model import Model
from drupe.core.store import Store, open_store
from drupe.core.store.mirror import MirrorStore
from drupe.core.store.upstream import Upstream

KEY = "a" * 64


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install 'drupe[s3]')")
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    import s3fs

    s3fs.S3FileSystem().call_s3("create_bucket", Bucket="drupe")
    yield "s3://drupe"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


class Plain(LocalFileSystem):
    """Stands for file systems that create no file for one alone, such as those behind SFTP: it opens nothing "x"."""

    protocol = "plain"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("plain://")))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        assert "x" not in mode
        return super().open(path, mode, **options)


fsspec.register_implementation("plain", Plain, clobber=True)


@pytest.fixture(params=["file", "memory", "plain", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    unique = f"{tmp_path.name}-{time.time_ns():x}"
    match request.param:
        case "file":
            return f"file://{tmp_path}/shared folder"
        case "memory":
            return f"memory://{unique}"
        case "plain":
            return f"plain://{tmp_path}/shared"
        case _:
            return f"{request.getfixturevalue('s3_server')}/{unique}"


def put(store: Store, folder: Path, key: str = KEY, **files: str) -> Model:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    model = Model.from_dir("text", folder)
    store.publish(model, folder)
    store.put(key, {"key": key, "name": "step", "seconds": 1.0, "model": model.to_json()})
    return model


def two(tmp_path: Path, url: str) -> tuple[MirrorStore, MirrorStore]:
    """Two machines with one shared store."""
    first, second = open_store(tmp_path / "one", url), open_store(tmp_path / "two", url)
    assert isinstance(first, MirrorStore) and isinstance(second, MirrorStore)
    return first, second


def test_what_one_machine_made_another_one_has(tmp_path: Path, url: str) -> None:
    first, second = two(tmp_path, url)
    model = put(first, tmp_path / "out", text="hello", more="m" * 1000)
    record = second.get(KEY)
    assert record is not None
    assert Model.from_json(record["model"]) == model
    assert not Store.has(second, model.files["text"])
    second.stage(model, tmp_path / "job")
    assert (tmp_path / "job" / "text").read_text() == "hello"
    second.export(model, tmp_path / "model")
    assert (tmp_path / "model" / "more").read_text() == "m" * 1000
    assert second.read_bytes(model.files["text"]) == b"hello"
    assert second.get("b" * 64) is None


def test_a_blob_that_is_damaged_upstream_is_found_and_the_step_counts_as_absent(tmp_path: Path, url: str) -> None:
    first, second = two(tmp_path, url)
    model = put(first, tmp_path / "out", text="hello")
    first.upstream._fs.pipe_file(first.upstream._blob(model.files["text"]), b"hullo")
    assert second.get(KEY) is not None
    with pytest.raises(StoreError, match="damaged"):
        second.stage(model, tmp_path / "job")
    assert open_store(tmp_path / "three", url).get(KEY) is None


def test_a_lease_is_held_by_one(tmp_path: Path, url: str) -> None:
    first, second = Upstream(url), Upstream(url)
    with first.lease(KEY):
        with pytest.raises(Interrupted), second.lease(KEY, lambda: True):
            pass
        with second.lease("b" * 64):
            pass
    with second.lease(KEY, lambda: True):
        pass


def test_a_lease_is_renewed_while_it_is_held_and_taken_over_when_it_has_run_out(tmp_path: Path, url: str) -> None:
    first, second = Upstream(url, lease_seconds=1.0), Upstream(url, lease_seconds=1.0)
    with first.lease(KEY):
        time.sleep(1.5)
        with pytest.raises(Interrupted), second.lease(KEY, lambda: True):
            pass
    # A machine that died: nobody renews what it held.
    first._fs.pipe_file(first._lease(KEY), json.dumps({"owner": "gone", "expires": time.time() + 0.5}).encode())
    started = time.monotonic()
    with second.lease(KEY):
        assert time.monotonic() - started > 0.4


def test_a_lease_that_was_half_written_when_its_machine_died_is_taken_over(url: str) -> None:
    # S3 tells whole seconds: when a file was written may lie one in the past at once.
    upstream = Upstream(url, lease_seconds=2.5 if url.startswith("s3") else 1.0)
    upstream._make_parent(upstream._lease(KEY))
    upstream._fs.pipe_file(upstream._lease(KEY), b'{"owner": "gone", "expi')
    with pytest.raises(Interrupted), upstream.lease(KEY, lambda: True):
        pass
    deadline = time.monotonic() + 30
    with upstream.lease(KEY, lambda: time.monotonic() > deadline):
        assert upstream.leased(KEY)


@pytest.mark.parametrize(("kind", "turns"), [("file", 200), ("memory", 200), ("plain", 4)])
def test_two_that_take_a_lease_at_the_same_moment_do_not_both_have_it(tmp_path: Path, kind: str, turns: int) -> None:
    """Nor do both write into one file, which then belongs to neither and keeps everybody out."""
    url = f"memory://{tmp_path.name}" if kind == "memory" else f"{kind}://{tmp_path}/shared"
    machines = [Upstream(url), Upstream(url)]
    for turn in range(turns):
        start, taken = threading.Barrier(2), []

        def take(
            machine: Upstream, key: str = f"{turn:064}", start: threading.Barrier = start, taken: list[bool] = taken
        ) -> None:
            start.wait()
            taken.append(machine._take(key))

        threads = [threading.Thread(target=take, args=(machine,), daemon=True) for machine in machines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(taken) == [False, True], turn


def test_who_lost_a_lease_does_not_take_it_back(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A machine that was asleep finds that another one took over: it finishes its own work and leaves theirs alone."""
    upstream = Upstream(url, lease_seconds=0.6)
    other = json.dumps({"owner": "other", "expires": time.time() + 60}).encode()
    with upstream.lease(KEY):
        upstream._fs.pipe_file(upstream._lease(KEY), other)
        time.sleep(0.5)
        assert upstream._fs.cat_file(upstream._lease(KEY)) == other
    assert upstream._fs.cat_file(upstream._lease(KEY)) == other
    assert "taken over" in caplog.text


def test_a_lease_that_cant_be_given_back_fails_no_step(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream(url)
    monkeypatch.setattr(upstream._fs, "rm_file", _refuses)
    with upstream.lease(KEY):
        pass
    monkeypatch.undo()
    upstream._fs.rm_file(upstream._lease(KEY))


def test_a_refusal_while_housekeeping_is_one_message(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "one", url)
    put(store, tmp_path / "out", KEY, text="hello")
    upstream = Upstream(url)
    monkeypatch.setattr(upstream._fs, "cat_file", _refuses)
    with pytest.raises(StoreError, match=r"can't be read .*not allowed"):
        list(upstream.records())


def _refuses(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("not allowed")


def test_two_machines_do_a_step_once(tmp_path: Path, url: str) -> None:
    done: list[int] = []

    def work(number: int, store: MirrorStore) -> None:
        for turn in range(5):
            key = f"{turn:064}"
            with store.lock(key):
                if store.get(key) is None:
                    done.append(turn)
                    put(store, tmp_path / f"out-{number}-{turn}", key, text=str(turn))

    stores = two(tmp_path, url)
    threads = [threading.Thread(target=work, args=(n, store), daemon=True) for n, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == list(range(5))


def test_old_steps_are_collected_and_damage_is_found(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "one", url)
    assert isinstance(store, MirrorStore)
    old = put(store, tmp_path / "old", KEY, text="o" * 1000, shared="s" * 1000)
    put(store, tmp_path / "new", "b" * 64, text="n" * 1000, shared="s" * 1000)
    upstream = Upstream(url)
    assert upstream.size() == 3000
    assert upstream.gc(max_bytes=0).records == 0, "what was just written stays"
    ages = {KEY: 5 * 86400, "b" * 64: 3 * 86400}
    monkeypatch.setattr(
        upstream, "_modified", lambda path: time.time() - next((a for k, a in ages.items() if k in path), 9 * 86400)
    )
    done = upstream.gc(max_bytes=2500)
    assert (done.records, done.blobs, done.freed) == (1, 1, 1000)
    assert Upstream(url).record(KEY) is None
    assert Upstream(url).record("b" * 64) is not None
    upstream._fs.pipe_file(upstream._blob(old.files["shared"]), b"damaged")
    assert upstream.verify() == [old.files["shared"]]
    assert Upstream(url).record("b" * 64) is None


def test_a_write_that_is_cut_short_leaves_no_half_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared folder: another machine never sees a part of a file under its digest."""
    store = open_store(tmp_path / "one", f"file://{tmp_path}/shared")
    assert isinstance(store, MirrorStore)
    monkeypatch.setattr(store.upstream._fs, "mv", _fails)
    with pytest.raises(StoreError, match="can't be sent"):
        put(store, tmp_path / "out", text="hello")
    assert [p for p in (tmp_path / "shared").rglob("*") if p.is_file()] == []


def _fails(*arguments: Any, **options: Any) -> None:
    raise OSError("cut short")


def test_an_unknown_kind_of_url_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be opened"):
        open_store(tmp_path, "nonsense://bucket")


def test_a_workflow_may_name_a_url(tmp_path: Path) -> None:
    """Two machines, each with a home of its own: the second one finds what the first one made."""
    from tests.support.commands import run_command
    from tests.support.workflows import environment, toy_document, write_workflow

    path = write_workflow(tmp_path, toy_document(tmp_path, cache_dir=f"file://{tmp_path}/shared"))
    for home in ("one", "two"):
        env = {**environment(tmp_path), "DRUPE_HOME": str(tmp_path / f"home-{home}")}
        done = run_command(["run", str(path), "--output-dir", str(tmp_path / home)], env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "toy.log").read_text().count("Append") == 1
    listed = run_command(["cache", "ls", f"file://{tmp_path}/shared"], env=environment(tmp_path), cwd=tmp_path)
    assert "append" in listed.stdout, listed.stderr

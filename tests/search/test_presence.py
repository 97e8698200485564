from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from drupe.search import presence
from drupe.search.presence import Presence
from tests.search.synthetic import open_study


def test_a_worker_is_alive_until_it_closes(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    one = Presence(tmp_path, study._storage, study._study_id, local=True)
    two = Presence(tmp_path, study._storage, study._study_id, local=True)
    assert two.alive(one.name) and one.alive(one.name)
    one.close()
    assert not two.alive(one.name)
    two.close()


def test_over_a_database_a_silent_worker_is_dead_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(presence, "BEAT", 0.02)
    monkeypatch.setattr(presence, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    # Each worker has a folder of its own and another machine's name, so only heartbeats tell.
    study = open_study(tmp_path, storage=f"sqlite:///{tmp_path}/study.db")
    monkeypatch.setattr(socket, "gethostname", lambda: "far-away")
    far = Presence(tmp_path / "far", study._storage, study._study_id, local=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    here = Presence(tmp_path / "here", study._storage, study._study_id, local=False)

    def beat() -> object:
        return study._storage.get_study_user_attrs(study._study_id).get(f"beat:{far.token}")

    for _ in range(3):
        assert here.alive(far.name)
        before, end = beat(), time.monotonic() + 30
        while beat() == before:
            assert time.monotonic() < end
            time.sleep(0.01)
        clock[0] += presence.GRACE - 1
    far.close()
    assert here.alive(far.name)
    clock[0] += presence.GRACE - 1
    assert here.alive(far.name)
    clock[0] += 2
    assert not here.alive(far.name)
    here.close()

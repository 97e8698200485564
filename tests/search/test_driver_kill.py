"""kill -9 on `drupe run` and on its workers; benchmarks/search_driver_kill.py does it fifty times."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.search_driver_kill import KINDS, disturbed, done_again, finish, outcome, workflow

from tests.support.workflows import start_drupe


def test_after_a_kill_no_trial_is_lost_or_doubled_and_one_worker_goes_the_undisturbed_way(tmp_path: Path) -> None:
    draw = random.Random(5)
    whole = tmp_path / "undisturbed"
    whole.mkdir()
    finish(start_drupe("run", workflow(whole, 1), folder=whole))
    expected = outcome(whole)
    killed = 0
    for index, kind in enumerate((*KINDS, *KINDS[:2])):
        folder = tmp_path / str(index)
        folder.mkdir()
        killed += disturbed(folder, kind, draw.uniform(0.0, 1.0))
        found = outcome(folder)
        if kind == KINDS[0]:
            assert found == expected
        assert done_again(folder) <= 2
    assert killed >= 3

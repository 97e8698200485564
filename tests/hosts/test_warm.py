"""A warm worker that can't be had: the message says why."""

from __future__ import annotations

import sys

import pytest

from drupe.core.errors import HostError
from drupe.hosts.warm import WarmWorker


def test_a_worker_that_ends_at_once_says_what_it_said_last() -> None:
    with pytest.raises(HostError, match=r"ended before it was ready \(.+\): ModuleNotFoundError: .*'not_there'"):
        WarmWorker([sys.executable, "-c", "import not_there"])

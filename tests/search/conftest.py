from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.search.synthetic import OPENED


@pytest.fixture(autouse=True)
def close_studies() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()

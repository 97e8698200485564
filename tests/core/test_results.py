"""The manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.core.results import RunResult, write_manifest


@pytest.mark.parametrize("password", ["plain", "with@sign", "with:colon", "a%40b"])
def test_the_manifest_shows_no_password_of_a_storage(tmp_path: Path, password: str) -> None:
    document = {"search_strategy": {"storage": f"postgresql://someone:{password}@host:5432/studies", "seed": 1}}
    told = write_manifest(RunResult(tmp_path), document=document, facts={}).read_text()
    assert password not in told
    assert "postgresql://someone:***@host:5432/studies" in told

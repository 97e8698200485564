"""Step keys change with everything that can change a result, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.config import DataRef, FileRef, PassConfig, SecretRef
from drupe.core.errors import ConfigError
from drupe.core.keys import config_identity, file_identity, step_key
from drupe.core.registry import Plugin, Registered
from drupe.core.specs import PassSpec


class Config(PassConfig):
    rank: int = 4
    data: DataRef | None = None
    script: FileRef | None = None
    token: SecretRef | None = None


ENTRY = Registered("drupe_passes", PassSpec(name="P", target="m:P"), Plugin("p", "m", "absent-distribution", "1"))


def key(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "version": 1,
        "config": {"rank": 4},
        "inputs": {"model": "a" * 64},
        "references": {},
        "packages": {"torch": "2"},
        "accelerator": None,
        "seed": 0,
    }
    return step_key("pass", ENTRY, **{**arguments, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"config": {"rank": 8}},
        {"inputs": {"model": "b" * 64}},
        {"references": {"data": "x"}},
        {"packages": {"torch": "3"}},
        {"accelerator": Accelerator("gpu")},
        {"seed": 1},
        {"extra": {"fingerprint": "tool 7"}},
    ],
)
def test_everything_that_can_change_a_result_changes_the_key(change: dict[str, Any]) -> None:
    assert key(**change) != key()


def test_a_key_is_stable_and_has_256_bits() -> None:
    assert key() == key()
    assert len(key()) == 64


def test_references_enter_by_what_they_hold_and_secrets_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    config = Config(data="train", script="a.py", token="MY_TOKEN")
    values, found = config_identity(
        config, data=lambda name: f"identity of {name}", file=lambda p: p.read_text(), folder=tmp_path
    )
    assert values == {"rank": 4}
    assert found == {"data": "identity of train", "script": "1"}
    assert "MY_TOKEN" not in repr((values, found))


def test_a_folder_is_identified_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").write_text("1")
    before = file_identity(tmp_path / "d", lambda p: p.read_text())
    (tmp_path / "d/y").write_text("2")
    assert file_identity(tmp_path / "d", lambda p: p.read_text()) != before
    with pytest.raises(ConfigError, match="does not exist"):
        file_identity(tmp_path / "gone", lambda p: "")

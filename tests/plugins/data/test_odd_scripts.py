"""Functions and scripts of a user's that are odd or wrong: taken as they are meant, or one message that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import ConfigError
from tests.plugins.data.conftest import Loaded

Load = Callable[..., Loaded]

SCRIPT = """
import numpy as np

def lazily(count=3):
    for index in range(count):
        yield {"x": np.ones(2, "float32") * index}, index % 2

def rows():
    return [{"text": "a", "label": 1}]

def raises():
    raise RuntimeError("my own trouble")

def ends():
    yield from lazily()
    raise OSError("disk gone")

def prepared(items):
    return items[7]

def unequal(items):
    return [({"x": np.ones((2, 2))}, np.array([0, 1, 1]))]

def ragged():
    return [({"x": [[1, 2], [3]]}, 1)]

no_function = 5
"""


@pytest.fixture
def scripted(load: Load, tmp_path: Path) -> Callable[..., Loaded]:
    (tmp_path / "s.py").write_text(SCRIPT)

    def scripted(function: str, script: str = "s.py", options: Any = None, **config: Any) -> Loaded:
        loading = {"type": function, **(options or {})}
        return load({"user_script": script, "load_dataset_config": loading, **config}, allow=["user-scripts"])

    return scripted


def test_what_can_be_gone_through_only_once_is_read(scripted: Callable[..., Loaded]) -> None:
    samples, _ = scripted("lazily")
    assert [(float(sample.inputs["x"][0]), sample.target) for sample in samples] == [(0.0, 0), (1.0, 1), (2.0, 0)]
    assert len(scripted("lazily", options={"count": 2})[0]) == 2


@pytest.mark.parametrize(
    ("function", "more", "message"),
    [
        ("raises", {}, r"raises \(s.py, line 12\) raised RuntimeError: my own trouble"),
        ("ends", {}, r"ends \(s.py, line 16\) raised OSError: disk gone"),
        ("lazily", {"options": {"count": "x"}}, r"lazily \(s.py, line 5\) raised TypeError"),
        ("rows", {"options": {"a": 1}}, r"rows \(s.py\) raised TypeError: rows\(\) got an unexpected keyword"),
        ("rows", {"pre_process_data_config": {"type": "prepared"}}, r"prepared \(s.py, line 19\) raised IndexError"),
        ("rows", {"dataloader_config": {"type": "unequal"}}, "a batch of the user's loader has 2 inputs and 3 targets"),
        ("ragged", {}, r"\[\[1, 2\], \[3\]\] is no array"),
        ("no_function", {}, r"load_dataset_config.type: no_function of s.py is no function"),
    ],
)
def test_what_a_function_does_wrong_is_one_message(
    scripted: Callable[..., Loaded], function: str, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        scripted(function, **more)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", "t.py, line 2 can't be imported: SyntaxError"),
        ("x = 1\nx / 0\n", "t.py, line 2 can't be imported: ZeroDivisionError"),
        ("raise SystemExit(3)\n", "t.py, line 1 can't be imported: SystemExit: 3"),
        ("import absent_of_drupe\n", "t.py can't be imported: No module named"),
    ],
)
def test_a_script_that_can_not_be_imported_is_one_message(
    scripted: Callable[..., Loaded], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "t.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        scripted("f", script="t.py")

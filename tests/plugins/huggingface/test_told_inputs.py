"""Example inputs of an io_config."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from drupe.core.errors import ConfigError
from drupe.plugins.huggingface.told_inputs import told_inputs


def test_shapes_types_and_named_axes() -> None:
    told = {"input_names": ["ids", "x"], "input_shapes": [["batch", 4], [2, 3]], "input_types": ["int64", "float32"]}
    found = told_inputs(told, named=2)
    assert found is not None
    assert {name: (tuple(value.shape), value.dtype) for name, value in found.items()} == {
        "ids": ((2, 4), torch.int64),
        "x": ((2, 3), torch.float32),
    }
    assert told_inputs({"input_names": ["ids"]}) is None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"input_names": ["x"], "input_shapes": [[1]], "input_types": ["int46"]}, "'int46' for x; expected int64"),
        ({"input_names": ["x"], "input_shapes": [[1]], "input_types": ["auto"]}, "'auto' for x"),
        ({"input_names": ["x", "y"], "input_shapes": [[1]]}, "2 input_names, 1 input_shapes and 2 input_types"),
    ],
)
def test_what_does_not_fit_is_told(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        told_inputs(told)

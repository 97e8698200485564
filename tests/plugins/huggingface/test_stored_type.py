"""The stored type of a model is told by its files, and is the one that it has when it is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drupe.core.model import Model
from drupe.plugins.huggingface.files import weight_types
from drupe.plugins.huggingface.loading import load_model
from drupe.plugins.huggingface.stored_type import stored_dtype
from drupe.testing import tiny_causal_lm
from tests.plugins.onnx.graphs import run_pass


def stored(folder: Path, kind: torch.dtype, **config: Any) -> Model:
    """Return a model whose weights have a type of which config.json says what `config` says."""
    made = load_model(tiny_causal_lm(folder)).to(kind)
    made.save_pretrained(folder)
    path = folder / "config.json"
    told = {key: value for key, value in json.loads(path.read_text()).items() if "dtype" not in key}
    path.write_text(json.dumps({**told, **config}))
    return Model.from_dir("hf", folder, {"task": "text-generation"}).at(folder)


@pytest.mark.parametrize("config", [{}, {"dtype": "float16"}, {"torch_dtype": "float16"}])
def test_it_is_the_type_of_the_loaded_model(tmp_path: Path, config: dict[str, str]) -> None:
    model = stored(tmp_path / "m", torch.bfloat16, **config)
    expected = torch.float16 if "float16" in config.values() else torch.bfloat16
    assert stored_dtype(model) == load_model(model).dtype == expected
    told = replace(model, attributes={**model.attributes, "load_kwargs": {"dtype": "float32"}})
    assert stored_dtype(told) == load_model(told).dtype == torch.float32


def test_weights_are_not_read_for_it(tmp_path: Path) -> None:
    model = stored(tmp_path / "m", torch.bfloat16)
    weights = model.folder / "model.safetensors"
    content = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    assert stored_dtype(model) == torch.bfloat16
    with pytest.raises(Exception, match=r"."):
        load_model(model)


def test_a_file_without_a_header_tells_nothing(tmp_path: Path) -> None:
    # As a checkout without Git LFS has it: the first eight bytes are no length.
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert list(weight_types(tmp_path)) == []


def test_pickled_weights_tell_nothing_and_are_loaded(tmp_path: Path) -> None:
    model = stored(tmp_path / "m", torch.bfloat16)
    torch.save(load_model(model).state_dict(), model.folder / "pytorch_model.bin")
    (model.folder / "model.safetensors").unlink()
    assert stored_dtype(Model.from_dir("hf", model.folder, dict(model.attributes)).at(model.folder)) == torch.bfloat16


def test_what_a_quantizer_leaves_in_float_keeps_its_type(tmp_path: Path) -> None:
    made = run_pass("Rtn", stored(tmp_path / "m", torch.bfloat16), tmp_path / "a", group_size=32)
    assert {kind for _, kind in weight_types(made.folder)} == {"U8", "BF16"}

"""What lies beside a model's weights goes along, and need not be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.core.model import Model
from drupe.plugins.huggingface.loading import load_model
from drupe.testing import tiny_causal_lm, tiny_encoder
from tests.plugins.onnx.graphs import run_pass


def bare(model: Model) -> Model:
    """Take everything away that is no weights and no config."""
    for path in model.folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    return Model.from_dir("hf", model.folder, model.attributes)


@pytest.mark.parametrize("name", ["Rtn", "QuaRot"])
def test_a_decoder_without_a_tokenizer_is_written_all_the_same(tmp_path: Path, name: str) -> None:
    made = run_pass(
        name, bare(tiny_causal_lm(tmp_path / "m")), tmp_path / "job", **({"group_size": 32} if name == "Rtn" else {})
    )
    assert "tokenizer.json" not in made.files
    load_model(made)


def test_an_encoder_without_a_tokenizer_is_written_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    made = run_pass("TorchAO", bare(tiny_encoder(tmp_path / "m")), tmp_path / "job")
    assert sorted(made.files) == ["config.json", "model.safetensors"]


def test_files_in_folders_go_along_also_those_named_as_what_is_written(tmp_path: Path) -> None:
    source = tiny_causal_lm(tmp_path / "m")
    (source.folder / "notes").mkdir()
    (source.folder / "notes" / "config.json").write_text("{}\n")
    source = Model.from_dir("hf", source.folder, source.attributes)
    for name in ("Rtn", "QuaRot"):
        made = run_pass(name, source, tmp_path / name, **({"group_size": 32} if name == "Rtn" else {}))
        assert {"notes/config.json", "tokenizer.json"} <= set(made.files)

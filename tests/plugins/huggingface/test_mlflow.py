"""MLflow models: the same Model as the plain folder gives, and nothing of theirs is run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.plugins.huggingface.mlflow import read_mlflow

_TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "chat_template.jinja")


def load(source: Path, out: Path, **config: Any) -> Model:
    kind = Registry.discover({"autoload": False}).create("drupe_model_kinds", "HfModel")
    (out / "outputs").mkdir(parents=True)
    context = JobContext(out / "outputs", out, workflow_dir=out)
    model: Model = kind.load(kind.Config(model_path=str(source), **config), {"model": source}, context)
    return model


def apart(model: Path, weights: Path, tokenizer: Path) -> None:
    """Lay a Hugging Face folder out in two."""
    shutil.copytree(model, weights)
    tokenizer.mkdir(parents=True)
    for pattern in _TOKENIZER:
        for path in weights.glob(pattern):
            path.rename(tokenizer / path.name)


@pytest.fixture
def flavored(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A model as mlflow.transformers saves it, with code that must not run."""
    folder = tmp_path / "flavored"
    apart(tiny_llama_dir, folder / "model", folder / "components" / "tokenizer")
    (folder / "code").mkdir()
    (folder / "code" / "loader.py").write_text("raise SystemExit('this was run')\n")
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: loader\n    code: code\n"
        "  transformers:\n    task: text-generation\n    model_binary: model\n    components: [tokenizer]\n"
    )
    return folder


def test_both_forms_give_the_plain_folders_model(flavored: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    plain = load(tiny_llama_dir, tmp_path / "plain", task="text-generation")
    assert load(flavored, tmp_path / "one").digest == plain.digest
    older = tmp_path / "older"
    apart(tiny_llama_dir, older / "data" / "model", older / "data" / "tokenizer")
    (older / "data" / "config").mkdir()
    (older / "data" / "model" / "config.json").rename(older / "data" / "config" / "config.json")
    (older / "MLmodel").write_text("flavors:\n  hftransformersv2:\n    task_type: text-generation\n    code: code\n")
    assert load(older, tmp_path / "two").digest == plain.digest


def test_the_workflows_task_is_stronger(flavored: Path, tmp_path: Path) -> None:
    assert load(flavored, tmp_path / "one", task="feature-extraction").attributes["task"] == "feature-extraction"


def test_other_flavors_are_told(tmp_path: Path) -> None:
    assert read_mlflow(tmp_path) is None
    (tmp_path / "MLmodel").write_text("flavors:\n  sklearn:\n    pickled_model: model.pkl\n")
    with pytest.raises(ConfigError, match="of the flavors sklearn; expected transformers"):
        read_mlflow(tmp_path)
    (tmp_path / "MLmodel").write_text("flavors: [")
    with pytest.raises(ConfigError, match="MLmodel can't be read"):
        read_mlflow(tmp_path)
    (tmp_path / "MLmodel").write_text("flavors:\n  transformers:\n    model_binary: ../elsewhere\n")
    with pytest.raises(ConfigError, match=r"without a config\.json"):
        read_mlflow(tmp_path)

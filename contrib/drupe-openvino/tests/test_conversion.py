"""OpenVINOConversion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drupe import ConfigError, Model, ModelInfo

from drupe_openvino import plugin

from .conftest import OPENVINO, made, opened, outputs


def test_an_onnx_model_computes_the_same(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    import onnxruntime

    x = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(onnx_mlp.folder / "model.onnx", providers=["CPUExecutionProvider"])
    converted = run_pass("OpenVINOConversion", onnx_mlp)
    assert converted.kind == "openvino"
    assert set(converted.files) == {"openvino_model.xml", "openvino_model.bin"}
    np.testing.assert_allclose(outputs(converted, {"x": x})["y"], session.run(None, {"x": x})[0], atol=1e-4)


def test_a_hugging_face_model_computes_the_same_at_any_batch_and_length(
    bert: Model, run_pass: Callable[..., Model]
) -> None:
    import torch
    from transformers import BertForSequenceClassification

    converted = run_pass("OpenVINOConversion", bert, output_model="small")
    assert converted.attributes["task"] == "text-classification"
    assert {"small.xml", "small.bin", "config.json", "tokenizer.json"} <= set(converted.files)
    assert not any(name.endswith(".safetensors") for name in converted.files)
    ids = np.random.default_rng(3).integers(4, 40, (2, 9))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with torch.no_grad():
        expected = BertForSequenceClassification.from_pretrained(bert.folder)(
            **{name: torch.from_numpy(value) for name, value in batch.items()}
        )
    np.testing.assert_allclose(outputs(converted, batch)["logits"], expected.logits.numpy(), atol=1e-4)


def test_equal_work_gives_equal_digests(bert: Model, run_pass: Callable[..., Model]) -> None:
    assert run_pass("OpenVINOConversion", bert).digest == run_pass("OpenVINOConversion", bert).digest


AGAIN = """
import sys
from pathlib import Path
from drupe import Accelerator, Model, PassContext
from drupe_openvino import plugin
from drupe_openvino.conversion import OpenVINOConversion

source, output = Path(sys.argv[1]), Path(sys.argv[2])
pass_ = OpenVINOConversion(plugin.drupe_passes()[0])
model = Model.from_dir("hf", source, {"task": "text-classification"})
print(pass_(model, pass_.Config(), PassContext(output, output, accelerator=Accelerator("openvino", "CPU"))).digest)
"""


def test_another_process_writes_the_same_bytes(bert: Model, run_pass: Callable[..., Model], tmp_path: Path) -> None:
    """What the spec promises: names that OpenVINO counts up per process are not in the IR."""
    assert plugin.drupe_passes()[0].deterministic
    here = run_pass("OpenVINOConversion", bert).digest
    folder = tmp_path / "there"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AGAIN, str(bert.folder), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.split()[-1] == here


def test_half_precision_halves_the_file(bert: Model, run_pass: Callable[..., Model]) -> None:
    full = run_pass("OpenVINOConversion", bert).folder / "openvino_model.bin"
    half = run_pass("OpenVINOConversion", bert, compress_to_fp16=True).folder / "openvino_model.bin"
    assert half.stat().st_size < 0.6 * full.stat().st_size


def test_shapes_can_be_fixed_on_the_way(onnx_mlp: Model, run_pass: Callable[..., Model]) -> None:
    fixed = run_pass("OpenVINOConversion", onnx_mlp, input_shapes=[[4, 64]])
    assert opened(fixed).input_shapes() == {"x": ((4, 64), "float32")}
    with pytest.raises(ConfigError, match="input_shapes has 2 shapes; the model has 1 inputs: x"):
        run_pass("OpenVINOConversion", onnx_mlp, input_shapes=[[4, 64], [1]])


def test_a_script_may_give_the_example_after_consent(
    bert: Model, run_pass: Callable[..., Model], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\ndef example():\n    ids = torch.ones(1, 5, dtype=torch.int64)\n"
        "    return {'input_ids': ids, 'attention_mask': ids}\n"
    )
    values = {"user_script": "mine.py", "example_input_func": "example"}
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        run_pass("OpenVINOConversion", bert, **values)
    converted = run_pass("OpenVINOConversion", bert, allow=frozenset({"user-scripts"}), **values)
    assert set(opened(converted).input_shapes()) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [({"adapter": "adapter"}, "MergeAdapterWeights"), ({"quantization": "gptq"}, "OpenVINOWeightCompression")],
)
def test_what_cannot_be_converted_is_refused_while_planning(attributes: dict[str, str], message: str) -> None:
    pass_ = made("OpenVINOConversion")
    with pytest.raises(ConfigError, match=message):
        pass_.plan(ModelInfo("hf", attributes), pass_.Config(), OPENVINO)

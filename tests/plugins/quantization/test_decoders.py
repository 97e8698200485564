"""What passes over the weights of a float decoder refuse before work."""

from __future__ import annotations

from typing import Any

import pytest

from drupe.core.errors import ConfigError
from drupe.core.model import ModelInfo
from drupe.core.registry import get_registry
from tests.plugins.onnx.graphs import CPU


@pytest.mark.parametrize(
    ("name", "does"), [("QuaRot", "rotates"), ("SliceGPT", "slices"), ("SparseGPT", "prunes"), ("SpinQuant", "rotates")]
)
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"adapter": "adapter"}, "{name}: .* MergeAdapterWeights"),
        ({"quantization": "gptq"}, "{name} goes before the quantizer"),
        ({"architecture": "BertModel"}, "{name} {does} decoders"),
    ],
)
def test_models_that_can_be_known_not_to_fit(name: str, does: str, attributes: dict[str, Any], message: str) -> None:
    subject = get_registry().create("drupe_passes", name)
    with pytest.raises(ConfigError, match=message.format(name=name, does=does)):
        subject.plan(ModelInfo("hf", attributes), type(subject).Config(), CPU)


@pytest.mark.parametrize("name", ["AutoRound", "Gptq", "LLMCompressor", "QuaRot", "SliceGPT", "SpinQuant"])
def test_passes_that_would_fill_the_zeros_of_a_pruned_model(name: str) -> None:
    subject = get_registry().create("drupe_passes", name)
    with pytest.raises(ConfigError, match=rf"{name} would fill the zeros .*sparsity \[2, 4\]\); (put|use)"):
        subject.plan(ModelInfo("hf", {"sparsity": [2, 4]}), type(subject).Config(), CPU)


@pytest.mark.parametrize(
    "name",
    ["AutoAWQQuantizer", "AutoRound", "Gptq", "KQuant", "LLMCompressor", "Rtn", "SliceGPT", "SparseGPT", "SpinQuant",
     "TorchAO"],
)  # fmt: skip
def test_devices_that_are_not_there_are_refused_before_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    subject = get_registry().create("drupe_passes", name)
    field = "compute_device" if name == "SparseGPT" else "device"
    for device, message in {
        "cuda:1": f"{name}: device is cuda:1, and PyTorch sees no GPU",
        "tpu": f"{name}: device is tpu; expected cpu, cuda or cuda:N",
        "cuda:first": "expected cpu, cuda or cuda:N",
    }.items():
        with pytest.raises(ConfigError, match=message):
            subject.check(type(subject).Config(**{field: device}), CPU)
    subject.check(type(subject).Config(**{field: "cpu"}), CPU)

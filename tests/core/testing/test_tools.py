"""The kit's tools: imports that are looked into, tiny models that are the same each time, contexts, sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.testing import (
    assert_light_import,
    heavy_imports,
    install_plugin,
    make_context,
    tiny_causal_lm,
    tiny_encoder,
    tiny_onnx_cnn,
    tiny_onnx_mlp,
)


def test_a_heavy_import_is_found_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"mine/__init__.py": "", "mine/plugin.py": "import json\nfrom mine import deep\n"}
    files |= {"mine/deep.py": "x = 1\ny = 2\nimport onnx\n", "onnx.py": "", "mine/light.py": "import json\n"}
    monkeypatch.syspath_prepend(str(install_plugin(tmp_path, "mine", files, plugins={})))
    assert heavy_imports("mine.plugin") == {"onnx": f"{tmp_path}/mine/deep.py:3"}
    with pytest.raises(AssertionError, match=r"deep\.py:3 imports onnx; import inside the function"):
        assert_light_import("mine.plugin")
    assert_light_import("mine.light")
    with pytest.raises(AssertionError, match=r"No module named 'mine\.absent'"):
        assert_light_import("mine.absent")


@pytest.mark.parametrize(("make", "feed"), [(tiny_onnx_mlp, {"x": (2, 8)}), (tiny_onnx_cnn, {"image": (2, 3, 8, 8)})])
def test_tiny_onnx_models_run_and_are_the_same_each_time(
    make: Callable[..., Model], feed: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    import onnxruntime

    model = make(tmp_path / "a")
    assert model.digest == make(tmp_path / "b").digest
    assert model.digest != make(tmp_path / "c", seed=1).digest
    session = onnxruntime.InferenceSession(str(model.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = {name: np.ones(shape, dtype=np.float32) for name, shape in feed.items()}
    assert session.run(["logits"], inputs)[0].shape == (2, 3)


def test_tiny_transformers_are_the_same_each_time_and_leave_the_random_state_alone(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = tiny_causal_lm(tmp_path / "a")
    assert torch.equal(torch.rand(1), expected)
    assert first.digest == tiny_causal_lm(tmp_path / "b").digest
    encoder = tiny_encoder(tmp_path / "c", labels=3)
    assert encoder.attributes["task"] == "text-classification"
    assert sum(p.stat().st_size for p in first.folder.iterdir()) < 1_000_000


def test_a_context_gives_the_data_that_it_was_given(tmp_path: Path) -> None:
    sample = Sample("a", {"x": "text"})
    context = make_context(tmp_path / "run", data={"one": [sample], "two": lambda model: [sample, sample]}, seed=3)
    assert context.data("one") == [sample]
    assert len(context.data("two")) == 2
    assert context.seed == 3
    with pytest.raises(ConfigError, match="'three' is not given; given: one, two"):
        context.data("three")


def test_what_drupe_testing_offers_is_fixed() -> None:
    import drupe.testing

    assert sorted(drupe.testing.__all__) == [
        "ConfigContract", "Contract", "DataContract", "GivenData", "HostContract", "JobFolders", "MetricContract",
        "PassContract", "RuntimeContract", "assert_light_import", "byte_tokenizer", "contract_site", "heavy_imports",
        "install_plugin", "isolated_registry", "make_context", "register", "tiny_causal_lm", "tiny_encoder",
        "tiny_onnx_cnn", "tiny_onnx_mlp",
    ]  # fmt: skip
    assert all(hasattr(drupe.testing, name) for name in drupe.testing.__all__)

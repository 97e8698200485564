"""Quantizers of decoders on SmolLM2: what onnxruntime-genai or transformers says of prose stays near its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.testing import make_context
from tests.plugins.onnx.graphs import CPU, run_pass
from tests.plugins.real_models import by_genai, by_transformers, divergence, perplexity
from tests.support.texts import PRIMER

pytestmark = pytest.mark.slow
AS_IT_IS = {"nodes_to_exclude": ["/lm_head/MatMul"], "shared_embeddings": False, "accuracy_level": 1}
"""Options of ModelBuilder with which it rounds nothing itself."""
SCHEME = {"group_size": 64, "sym": True}


@pytest.fixture(scope="module")
def cut(smollm2_cut_dir: Path) -> Model:
    return Model.from_dir("hf", smollm2_cut_dir, {"task": "text-generation"})


@pytest.fixture(scope="module")
def texts(smollm2_cut_dir: Path) -> list[Sample]:
    """Prose that calibrates; nothing of it is in the prose that judges."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_cut_dir)
    rows = [np.asarray(tokenizer(text).input_ids) for text in PRIMER]
    return [Sample(f"t{n}", {"input_ids": row}, content_key=f"k{n}") for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def cut_says(smollm2_cut_dir: Path, prose: np.ndarray) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    return by_transformers(AutoModelForCausalLM.from_pretrained(smollm2_cut_dir, dtype=torch.float32), prose)


@pytest.fixture(scope="module")
def rounded(cut: Model, cut_says: np.ndarray, prose: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How far rounding to nearest leads the blocks away."""
    made = run_pass("Rtn", cut, tmp_path_factory.mktemp("rtn"), scale_search=False, **SCHEME)
    return divergence(said(made, prose, tmp_path_factory.mktemp("built")), cut_says)


def said(model: Model, ids: np.ndarray, folder: Path) -> np.ndarray:
    """What onnxruntime-genai says of a model that was rounded before."""
    return by_genai(run_pass("ModelBuilder", model, folder, precision="int4", **AS_IT_IS).folder, ids)


@pytest.mark.parametrize(
    ("name", "config", "share"),
    [
        pytest.param("Gptq", {"scale_search": False}, 0.55, marks=pytest.mark.real_run("Gptq", "Rtn", "ModelBuilder")),
        pytest.param("KQuant", {"group_size": 32, "sym": False}, 0.65, marks=pytest.mark.real_run("KQuant")),
        pytest.param("AutoAWQQuantizer", {}, 0.5, marks=pytest.mark.real_run("AutoAWQQuantizer")),
        pytest.param(
            "AutoRound", {"iters": 20, "seqlen": 40, "nsamples": 8, "batch_size": 8}, 0.55,
            marks=pytest.mark.real_run("AutoRound"),
        ),
    ],
)  # fmt: skip
def test_the_first_blocks_stay_nearer_than_by_rounding(
    name: str, config: dict[str, Any], share: float, cut: Model, texts: list[Sample], cut_says: np.ndarray,
    rounded: float, prose: np.ndarray, tmp_path: Path,
) -> None:  # fmt: skip
    if name == "AutoRound":
        pytest.importorskip("auto_round")
    context = make_context(tmp_path / "job", accelerator=CPU, data={"texts": texts})
    given = {} if name == "KQuant" else {"data_config": "texts"}
    made = run_pass(name, cut, tmp_path, context=context, **{**given, **SCHEME, **config})
    found = divergence(said(made, prose, tmp_path / "built"), cut_says)
    assert rounded < 0.1
    assert 0 < found < share * rounded, (found, rounded)


@pytest.mark.real_run("SelectiveMixedPrecision")
def test_more_bits_for_the_chosen_layers_bring_the_first_blocks_nearer(
    cut: Model, cut_says: np.ndarray, rounded: float, prose: np.ndarray, tmp_path: Path
) -> None:
    chosen = run_pass("SelectiveMixedPrecision", cut, tmp_path / "a", algorithm="k_quant_down")
    made = run_pass("Rtn", chosen, tmp_path / "b", scale_search=False, **SCHEME)
    found = divergence(said(made, prose, tmp_path / "c"), cut_says)
    assert 0 < found < 0.9 * rounded, (found, rounded)


@pytest.mark.real_run("SelectiveMixedPrecision", "Rtn", "ModelBuilder")
def test_smollm2_with_four_and_eight_bits_reads_prose_nearly_as_well(
    smollm2: Model, smollm2_says: np.ndarray, prose: np.ndarray, tmp_path: Path
) -> None:
    chosen = run_pass("SelectiveMixedPrecision", smollm2, tmp_path / "a", algorithm="k_quant_mixed")
    made = run_pass("Rtn", chosen, tmp_path / "b", group_size=32)
    found = said(made, prose, tmp_path / "c")
    assert perplexity(smollm2_says, prose) < 21
    assert perplexity(found, prose) < 1.25 * perplexity(smollm2_says, prose)


@pytest.mark.real_run("QuaRot")
def test_rotated_smollm2_says_the_same(
    smollm2: Model, smollm2_says: np.ndarray, prose: np.ndarray, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    made = run_pass("QuaRot", smollm2, tmp_path)
    turned = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32, local_files_only=True)
    np.testing.assert_allclose(by_transformers(turned, prose), smollm2_says, atol=5e-4)
    before = AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32)
    weights = [model.state_dict()["model.layers.3.mlp.down_proj.weight"] for model in (before, turned)]
    kurtosis = [float(((weight / weight.std()) ** 4).mean()) for weight in weights]
    # That of a normal distribution, which has no outliers, is 3.
    assert kurtosis[1] < 3.05 < 3.4 < kurtosis[0]

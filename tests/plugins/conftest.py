"""What the tests on real models share: MiniLM as a graph, its sentences, and what transformers makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drupe.core.model import Model
from tests.plugins.real_models import Sentences, by_transformers
from tests.support.texts import PAIRS, PROSE


@pytest.fixture(scope="session")
def minilm(minilm_dir: Path) -> Model:
    """MiniLM as an `hf` model."""
    return Model.from_dir("hf", minilm_dir, {"task": "feature-extraction"})


@pytest.fixture(scope="session")
def minilm_graph(minilm: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """MiniLM as OnnxConversion writes it: by tracing, operator set 17."""
    from tests.plugins.onnx.graphs import run_pass

    folder = tmp_path_factory.mktemp("minilm-graph")
    return run_pass("OnnxConversion", minilm, folder, use_dynamo_exporter=False, target_opset=17)


@pytest.fixture(scope="session")
def sentences(minilm_dir: Path) -> Sentences:
    """The pairs of sentences as tokens, and their embeddings by transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    texts = [text for pair in PAIRS for text in pair]
    batch: dict[str, np.ndarray] = dict(tokenizer(texts, padding=True, return_tensors="np"))
    with torch.inference_mode():
        states = AutoModel.from_pretrained(minilm_dir).eval()(**{k: torch.from_numpy(v) for k, v in batch.items()})
    return Sentences.of(batch, states.last_hidden_state.numpy())


@pytest.fixture(scope="session")
def smollm2(smollm2_dir: Path) -> Model:
    """SmolLM2-135M as an `hf` model."""
    return Model.from_dir("hf", smollm2_dir, {"task": "text-generation"})


@pytest.fixture(scope="session")
def prose(smollm2_dir: Path) -> np.ndarray:
    """A paragraph that nothing calibrates on or trains on, in SmolLM2's tokens, (n,)."""
    from transformers import AutoTokenizer

    return np.asarray(AutoTokenizer.from_pretrained(smollm2_dir)("\n\n".join(PROSE)).input_ids)


@pytest.fixture(scope="session")
def smollm2_says(smollm2_dir: Path, prose: np.ndarray) -> np.ndarray:
    """What SmolLM2 says of each next token of the prose, by transformers: log probabilities (n, vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM

    return by_transformers(AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval(), prose)

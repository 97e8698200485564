"""A real sentence encoder through every pass: sizes fall as they should and meanings stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from drupe import Model, Sample

from .conftest import outputs

SENTENCES = [
    "A cat sleeps on the warm stove.",
    "The kitten naps near the fire.",
    "Interest rates rose again this quarter.",
    "The central bank has made borrowing dearer.",
    "She tuned the violin before the concert.",
    "Rain is expected over the northern hills.",
]


def encoded(model: Model) -> list[Mapping[str, np.ndarray]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    return [{k: np.asarray(v)[None] for k, v in tokenizer(s).items()} for s in SENTENCES]


def embeddings(model: Model) -> np.ndarray:
    """Return the mean of each sentence's last hidden states, of length 1."""
    vectors = np.stack([outputs(model, batch)["last_hidden_state"][0].mean(0) for batch in encoded(model)])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def megabytes(model: Model) -> float:
    return sum((model.folder / n).stat().st_size for n in model.files if n.endswith(".bin")) / 1e6


@pytest.mark.slow
def test_minilm_through_conversion_compression_and_quantization(minilm: Model, run_pass: Callable[..., Model]) -> None:
    full = run_pass("OpenVINOConversion", minilm)
    data = [Sample(str(i), {k: v[0] for k, v in batch.items()}) for i, batch in enumerate(encoded(full))]
    made = {
        "int8": run_pass("OpenVINOWeightCompression", full, mode="int8_asym"),
        "int4": run_pass("OpenVINOWeightCompression", full, mode="int4_sym", group_size=64),
        "quantized": run_pass("OpenVINOQuantization", full, data=data, data_config="d"),
    }
    exact = embeddings(full)
    # Kitten and cat, bank and rates belong together; the others do not.
    near = exact @ exact.T
    assert near[0, 1] > 0.4 > near[0, 2]
    assert near[2, 3] > 0.3 > near[2, 4]
    floors = {"int8": (0.995, 25.0), "int4": (0.9, 20.0), "quantized": (0.95, 25.0)}
    for name, (closest, size) in floors.items():
        similarity = (embeddings(made[name]) * exact).sum(1)
        figures = (
            f"{name}: {megabytes(made[name]):.1f} MB, cosine {similarity.mean():.4f}, least {similarity.min():.4f}"
        )
        assert similarity.mean() > closest, figures
        assert megabytes(made[name]) < size, figures

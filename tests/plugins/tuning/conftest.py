"""What the tuning tests share: rows of a toy task, a job context over them, passes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.digests import digest_of
from drupe.core.model import Model
from drupe.core.passes import Pass
from drupe.plugins.tuning import methods
from drupe.plugins.tuning.elastic import SelectRank
from drupe.plugins.tuning.merge import MergeAdapterWeights
from drupe.plugins.tuning.plugin import drupe_passes


class Source:
    """Serves samples by the name of their data config."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        self._samples = samples

    def samples(self, name: str, part: str | None, model: Model | None, context: JobContext) -> Sequence[Sample]:
        """Return the samples, whatever the part."""
        return self._samples[name]


def sample(number: int, text: str, answer: str) -> Sample:
    """A byte-level prompt and answer; loss on the answer and the end token only."""
    prompt, target = list(text.encode()), [*answer.encode(), 257]
    ids = np.array(prompt + target, dtype=np.int64)
    labels = np.array([-100] * len(prompt) + target, dtype=np.int64)
    return Sample(
        str(number),
        {"input_ids": ids, "labels": labels, "attention_mask": np.ones_like(ids)},
        answer,
        digest_of([text, answer]),
    )


def toy_samples(count: int = 24) -> list[Sample]:
    """Count the letters: 'aaa=' is answered by '3'. Rows differ in length, and some repeat."""
    rng = np.random.default_rng(0)
    return [sample(i, "ab"[i % 2] * n + "=", str(n)) for i, n in enumerate(rng.integers(1, 9, count).tolist())]


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., JobContext]:
    """Build a job context whose data config `toy` gives the toy rows."""
    made = 0

    def build(
        data: Mapping[str, Sequence[Sample]] | None = None, checkpoint_dir: Path | None = None, **fields: Any
    ) -> JobContext:
        nonlocal made
        made += 1
        output = tmp_path / f"out-{made}"
        output.mkdir()
        return JobContext(
            output_dir=output,
            checkpoint_dir=checkpoint_dir or tmp_path / f"checkpoint-{made}",
            data_source=Source(data if data is not None else {"toy": toy_samples()}),
            **fields,
        )

    return build


@pytest.fixture
def tiny(tiny_llama_dir: Path) -> Model:
    """The tiny Llama as an `hf` model."""
    return Model.from_dir("hf", tiny_llama_dir, {"task": "text-generation"}).at(tiny_llama_dir)


def make_pass(name: str) -> Pass:
    """Return a tuning pass as the registry would make it."""
    spec = next(spec for spec in drupe_passes() if spec.name == name)
    kinds: dict[str, type[Pass]] = {"MergeAdapterWeights": MergeAdapterWeights, "SelectRank": SelectRank}
    return kinds.get(name, getattr(methods, name, Pass))(spec)


def run_pass(name: str, model: Model, context: JobContext, **config: Any) -> Model:
    """Run a tuning pass as the worker would: checked before and after; the result is staged in a folder."""
    import shutil

    tuning = make_pass(name)
    if name not in ("MergeAdapterWeights", "SelectRank"):
        config = {"train_data_config": "toy", "r": 4, **config}
        config["training_args"] = {"per_device_train_batch_size": 4, "max_steps": 3, **config.get("training_args", {})}
    result = tuning(model, tuning.Config(**config), context)
    staged = context.output_dir.with_name(f"{context.output_dir.name}-staged")
    for file in result.files:
        source = context.output_dir / file
        target = staged / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source if source.is_file() else model.folder / file, target)
    return result.at(staged)

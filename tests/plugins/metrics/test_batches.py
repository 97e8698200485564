"""Samples become batches that fit the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.plugins.metrics.batches import Batch, batches, made_up_batch
from drupe.plugins.metrics.config import DataMetricConfig
from tests.plugins.metrics.sessions import ForwardSession, context

Shapes = dict[str, tuple[tuple[int | str, ...], str]]


def tokens(*lengths: int) -> list[Sample]:
    return [
        Sample(f"s{i}", {"input_ids": np.arange(1, n + 1, dtype=np.int64), "text": "x"}, i)
        for i, n in enumerate(lengths)
    ]


def made(samples: list[Sample], folder: Path, shapes: Shapes | None = None, size: int = 1) -> list[Batch]:
    session = ForwardSession(lambda batch: batch, shapes)
    config: Any = DataMetricConfig(batch_size=size)
    return list(batches(session, samples, config, context(folder)))


def test_sequences_are_padded_to_the_longest_and_masked(tmp_path: Path) -> None:
    shapes: Shapes = {"input_ids": (("b", "s"), "int64"), "attention_mask": (("b", "s"), "int64")}
    (batch,) = made(tokens(3, 1), tmp_path, shapes, size=2)
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.targets == (0, 1)


def test_what_a_tokenizer_left_out_is_filled_in(tmp_path: Path) -> None:
    shapes: Shapes = {"token_type_ids": (("b", "s"), "int32"), "position_ids": (("b", "s"), "int64")}
    (batch,) = made(tokens(3), tmp_path, shapes)
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0]]
    assert batch.inputs["token_type_ids"].dtype == np.int32
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2]]


def test_graphs_without_a_mask_are_told_lengths(tmp_path: Path) -> None:
    shapes: Shapes = {
        "input_ids": (("b", "s"), "int64"), "past_seq_len": (("b", 1), "int32"), "total_seq_len": ((1,), "int32")
    }  # fmt: skip
    (batch,) = made(tokens(3, 5), tmp_path, shapes, size=2)
    assert batch.inputs["past_seq_len"].tolist() == [[2], [4]]
    assert batch.inputs["total_seq_len"].tolist() == [5]


def test_only_what_the_model_takes_is_fed(tmp_path: Path) -> None:
    sample = Sample("a", {"x": np.zeros(2), "labels": np.zeros(2), "extra": np.zeros(1), "text": "t"})
    assert set(made([sample], tmp_path)[0].inputs) == {"x", "extra"}
    assert set(made([sample], tmp_path, {"x": (("b", 2), "float32")})[0].inputs) == {"x"}


def test_a_model_of_fixed_size_gets_full_batches(tmp_path: Path) -> None:
    first, last = made(tokens(3, 2, 1), tmp_path, {"input_ids": ((2, 5), "int64")})
    assert first.inputs["input_ids"].shape == last.inputs["input_ids"].shape == (2, 5)
    assert first.ids == ("s0", "s1")
    assert last.ids == ("s2",)


def test_a_sample_too_long_for_a_model_of_fixed_size_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="has 6 entries on axis 1; the model was built for 5"):
        made(tokens(6), tmp_path, {"input_ids": ((1, 5), "int64")})


def test_a_missing_input_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no input 'pixels'.*input_ids, text"):
        made(tokens(1), tmp_path, {"pixels": (("b", 3), "float32")})


def test_a_sample_that_is_a_whole_batch_is_fed_as_it_is(tmp_path: Path) -> None:
    whole = {"whole_batch": True}
    inputs = {"texts": np.zeros((10, 7), np.int64), "image": np.zeros((1, 3), np.float32)}
    samples = [Sample(f"s{i}", inputs, i, extras=whole) for i in range(2)]
    first, second = made(samples, tmp_path, {"texts": ((10, 7), "int64"), "image": ((1, 3), "float32")}, size=5)
    assert (first.inputs["texts"].shape, first.inputs["image"].shape) == ((10, 7), (1, 3))
    assert (second.ids, second.targets) == (("s1",), (1,))


LOADERS = """
import numpy as np
def one(): yield np.ones((2, 3), np.float32), None
def more(): yield {"ids": np.ones((2, 3)), "step": np.zeros(1)}, None
def two(): yield [np.ones((2, 3)), np.zeros((2, 1))], None
def labelled(): yield {"ids": np.ones((2, 3)), "labels": np.array([4, 5])}
"""


def test_a_loaders_tensors_find_the_models_inputs(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(LOADERS)
    allowed = context(tmp_path, allow=frozenset({"user-scripts"}))

    def loaded(name: str, *inputs: str, takes_more: bool = False) -> list[str]:
        session = ForwardSession(lambda batch: batch, dict.fromkeys(inputs, (("b", "s"), "float32")))
        session.takes_more = takes_more
        config = DataMetricConfig.model_validate({"user_script": "s.py", "dataloader_func": name})
        (batch,) = batches(session, [], config, allowed)
        return list(batch.inputs)

    assert loaded("one", "logits") == ["logits"]
    assert loaded("two", "ids", "mask") == ["ids", "mask"]
    assert loaded("more", "ids") == ["ids"]
    assert loaded("more", "ids", takes_more=True) == ["ids", "step"]
    assert allowed.report["notes"] == ["more gives step, which the model does not take; left out"]
    with pytest.raises(EvaluationError, match=r"two \(s.py\) gives 2 inputs without names; the model takes ids; "):
        loaded("two", "ids")


def test_made_up_inputs_have_the_shapes_that_were_asked_for(tmp_path: Path) -> None:
    shapes: Shapes = {"pixels": (("n", 3, "h", "w"), "float16"), "mask": (("n", 4), "int64")}
    config = DataMetricConfig(
        input_names=["pixels"], input_shapes=[[2, 3, 8, 9]], input_types=["float32"], batch_size=2
    )
    batch = made_up_batch(ForwardSession(lambda b: b, shapes), config, context(tmp_path), 0)
    # A type that the model tells wins: half precision takes no other.
    assert {n: (a.shape, a.dtype.name) for n, a in batch.inputs.items()} == {
        "pixels": ((2, 3, 8, 9), "float16"),
        "mask": ((2, 4), "int64"),
    }
    silent = DataMetricConfig(input_names=["x", "ids"], input_shapes=[[1, 5], [1, 6]], input_types=["float32", "int64"])
    batch = made_up_batch(ForwardSession(lambda b: b), silent, context(tmp_path), 0)
    assert {n: (a.shape, a.dtype.name) for n, a in batch.inputs.items()} == {
        "x": ((1, 5), "float32"),
        "ids": ((1, 6), "int64"),
    }


def test_shapes_of_inputs_that_are_not_there_are_told(tmp_path: Path) -> None:
    shapes: Shapes = {"pixels": ((1, 3), "float32")}
    other = DataMetricConfig(input_names=["image"], input_shapes=[[1, 3]])
    surroundings = context(tmp_path)
    assert list(made_up_batch(ForwardSession(lambda b: b, shapes), other, surroundings, 0).inputs) == ["pixels"]
    assert surroundings.report["notes"] == ["input_names: image is no input of this model; it has pixels"]
    many = DataMetricConfig(input_shapes=[[1, 3], [1, 3]])
    with pytest.raises(EvaluationError, match="input_shapes has 2 entries; the model has the inputs pixels"):
        made_up_batch(ForwardSession(lambda b: b, shapes), many, context(tmp_path), 0)


def test_sizes_of_made_up_inputs_are_told_where_there_are_data(tmp_path: Path) -> None:
    config = DataMetricConfig(shape_kwargs={"length": 3}, input_shapes=[[1, 3]])
    surroundings = context(tmp_path)
    assert list(batches(ForwardSession(lambda b: b), tokens(2), config, surroundings))
    assert surroundings.report["notes"] == [
        "input_shapes and shape_kwargs had no effect: inputs are made up only where there is no data"
    ]


def test_labels_that_a_loader_gives_among_the_inputs_are_the_targets(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(LOADERS)
    allowed = context(tmp_path, allow=frozenset({"user-scripts"}))
    config = DataMetricConfig.model_validate({"user_script": "s.py", "dataloader_func": "labelled"})
    (batch,) = batches(ForwardSession(lambda b: b, {"ids": (("b", 3), "float32")}), [], config, allowed)
    assert list(batch.inputs) == ["ids"] and batch.targets == (4, 5) and "notes" not in allowed.report
    (batch,) = batches(ForwardSession(lambda b: b, {"labels": (("b",), "int64")}), [], config, allowed)
    assert list(batch.inputs) == ["labels"] and batch.targets == (None, None)

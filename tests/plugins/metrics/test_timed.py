"""Latency and throughput: what is called how often, whose clock counts, and the arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.runtimes import Session
from tests.plugins.metrics.sessions import (
    AnsweringSession,
    ForwardSession,
    configured,
    context,
    metric,
    model,
    questions,
)

NUMBERS = [Sample(str(i), {"x": np.full(2, float(i))}, i) for i in range(4)]


def echo(batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return {"y": batch["x"]}


def run(
    name: str, session: Session, samples: Any, folder: Path, baseline: Session | None = None, **config: Any
) -> list[tuple[float, ...]]:
    made = metric(name)
    rows = made.measure(
        model(folder), session, samples, configured(made, **config), context(folder, baseline_session=baseline)
    )
    return list(rows.values())


def test_warm_up_calls_are_made_and_not_counted(tmp_path: Path) -> None:
    session = ForwardSession(echo)
    rows = run("latency", session, NUMBERS, tmp_path, warmup_num=3, repeat_test_num=5)
    assert len(rows) == 5
    assert len(session.batches) == 8


def test_the_inputs_take_turns(tmp_path: Path) -> None:
    session = ForwardSession(echo)
    run("latency", session, NUMBERS, tmp_path, warmup_num=0, repeat_test_num=6)
    assert [int(batch["x"][0, 0]) for batch in session.batches] == [0, 1, 2, 3, 0, 1]


def test_a_loader_without_an_end_is_asked_for_as_many_batches_as_there_are_calls(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        "import numpy as np\n"
        "class Endless:\n"
        "    made = 0\n"
        "    def __getitem__(self, index):\n"
        "        Endless.made += 1\n"
        "        assert Endless.made < 100\n"
        "        return {'x': np.full((2, 3), float(index))}, None\n"
        "def load(data_dir, batchsize, *args, **kwargs):\n"
        "    assert kwargs['model_framework'] == 'ONNX' and batchsize == 2\n"
        "    return Endless()\n"
    )
    session = ForwardSession(echo)
    session.framework = "ONNX"
    made = metric("latency")
    config = configured(
        made, user_config={"user_script": "s.py", "dataloader_func": "load", "batch_size": 2}, warmup_num=3,
        repeat_test_num=2,
    )  # fmt: skip
    rows = made.measure(model(tmp_path), session, [], config, context(tmp_path, allow=frozenset({"user-scripts"})))
    assert len(rows) == 2
    assert [int(batch["x"][0, 0]) for batch in session.batches] == [0, 1, 2, 0, 1]


def test_the_devices_own_clock_counts(tmp_path: Path) -> None:
    session = ForwardSession(echo, sleep=0.02, device_seconds=0.5)
    rows = run("latency", session, NUMBERS, tmp_path, warmup_num=0, repeat_test_num=2)
    assert [row[0] for row in rows] == [500.0, 500.0]


def test_without_one_the_caller_s_clock_counts(tmp_path: Path) -> None:
    rows = run("latency", ForwardSession(echo, sleep=0.02), NUMBERS, tmp_path, warmup_num=0, repeat_test_num=2)
    assert all(20.0 <= row[0] < 500.0 for row in rows)


def test_generation_tells_the_time_to_the_first_token_and_the_tokens(tmp_path: Path) -> None:
    session = AnsweringSession(lambda prompt: "abcdefgh", device_seconds=0.25)
    rows = run("latency", session, questions([("p", "a")]), tmp_path, repeat_test_num=2, max_new_tokens=4)
    assert rows == [(250.0, 1.0, 4.0), (250.0, 1.0, 4.0)]
    assert set(session.prompts) == {"p"}


def test_the_baseline_is_interleaved_and_the_two_take_turns_in_going_first(tmp_path: Path) -> None:
    order: list[str] = []

    def tagged(tag: str) -> ForwardSession:
        def function(batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            order.append(tag)
            return batch

        return ForwardSession(function, device_seconds=0.001 if tag == "own" else 0.003)

    rows = run("latency", tagged("own"), NUMBERS, tmp_path, tagged("base"), warmup_num=0, repeat_test_num=3)
    assert order == ["own", "base", "base", "own", "own", "base"]
    assert rows[0] == pytest.approx((1.0, 1.0, 1.0, 3.0, 3.0, 1.0))
    made = metric("latency")
    assert made.aggregate(rows, "speedup", configured(made)) == pytest.approx(3.0)


def test_speedup_without_a_baseline_is_an_error(tmp_path: Path) -> None:
    rows = run("latency", ForwardSession(echo), NUMBERS, tmp_path, warmup_num=0)
    for name in ("latency", "throughput"):
        made = metric(name)
        with pytest.raises(EvaluationError, match="needs a baseline"):
            made.aggregate([row[:2] for row in rows], "speedup", configured(made))


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=50))
def test_latency_percentiles_are_ordered_within_min_and_max(times: list[float]) -> None:
    made = metric_latency
    rows = [(t, t / 2, 1.0) for t in times]
    config = configured(made)
    names = ("min", "p50", "p75", "p90", "p95", "p99", "p999", "max")
    values = [made.aggregate(rows, name, config) for name in names]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))
    assert values[1] == pytest.approx(float(np.median(times)))
    assert made.aggregate(rows, "ttft_p50", config) == pytest.approx(values[1] / 2)


metric_latency = metric("latency")


def test_throughput_counts_samples_or_tokens_per_second(tmp_path: Path) -> None:
    rows = run(
        "throughput",
        ForwardSession(echo, device_seconds=0.5),
        NUMBERS,
        tmp_path,
        batch_size=2,
        warmup_num=0,
        repeat_test_num=3,
    )
    assert rows == [(2.0, 0.5)] * 3
    tokens = run(
        "throughput",
        AnsweringSession(lambda p: "abcd", device_seconds=0.5),
        questions([("p", "a")]),
        tmp_path,
        repeat_test_num=1,
    )
    assert tokens == [(4.0, 0.5)]


def test_throughput_averages_over_all_time_and_its_p90_is_the_slow_end() -> None:
    made = metric("throughput")
    rows = [(10.0, 1.0), (10.0, 4.0)]
    assert made.aggregate(rows, "avg", configured(made)) == pytest.approx(4.0)
    assert made.aggregate(rows, "max", configured(made)) == pytest.approx(10.0)
    assert made.aggregate(rows, "min", configured(made)) == pytest.approx(2.5)
    assert made.aggregate(rows, "p90", configured(made)) < made.aggregate(rows, "p50", configured(made))


def test_without_data_inputs_are_made_up_by_the_model_s_shapes(tmp_path: Path) -> None:
    shapes: dict[str, tuple[tuple[int | str, ...], str]] = {
        "input_ids": (("batch", "sequence"), "int64"),
        "attention_mask": (("batch", "sequence"), "int64"),
        "pixels": (("batch", 3, 4), "float32"),
    }
    session = ForwardSession(lambda batch: batch, shapes)
    rows = run(
        "latency",
        session,
        (),
        tmp_path,
        batch_size=2,
        shape_kwargs={"sequence": 7},
        warmup_num=0,
        repeat_test_num=1,
    )
    made_up = session.batches[0]
    assert {name: value.shape for name, value in made_up.items()} == {
        "input_ids": (2, 7),
        "attention_mask": (2, 7),
        "pixels": (2, 3, 4),
    }
    assert made_up["pixels"].dtype == np.float32
    assert (made_up["attention_mask"] == 1).all()
    assert rows[0][2] == 2.0


def test_no_data_and_no_shapes_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="data_config"):
        run("latency", ForwardSession(echo), (), tmp_path)


@pytest.mark.parametrize("mode", ["auto", "forward", "generate"])
def test_the_mode_says_which_capability_is_needed(mode: str) -> None:
    made = metric("latency")
    wanted = {"auto": ("generate", "forward"), "forward": ("forward",), "generate": ("generate",)}[mode]
    assert made.needs(configured(made, mode=mode)) == wanted


def test_the_counts_of_sub_types_are_followed() -> None:
    """As Olive's files write them: the metric_config of a sub-type, which hands it over by the sub-type's name."""
    made = metric("latency")
    config = configured(made, metric_config={"avg": {"warmup_num": 3, "repeat_test_num": 5}, "p90": {"warmup_num": 3}})
    assert (config.warmup_num, config.repeat_test_num, config.sleep_num) == (3, 5, 0)
    assert configured(made, user_config={"metric_config": {"sleep_num": 1}}).sleep_num == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metric_config": {"avg": {"warmup": 3}}}, "unknown option 'warmup'; known: warmup_num"),
        ({"metric_config": {"avg": {"warmup_num": 3}, "max": {"warmup_num": 4}}}, "warmup_num is 4 and 3; the same"),
        ({"metric_config": {"avg": {"warmup_num": 3}}, "warmup_num": 5}, "warmup_num is 3 and 5"),
    ],
)
def test_counts_that_can_not_be_followed_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        configured(metric("latency"), **config)

"""Accuracy: generation, choice by log-likelihood, classification; each number worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import ConfigError, EvaluationError
from tests.plugins.metrics.sessions import (
    AnsweringSession,
    ForwardSession,
    LetterSession,
    configured,
    context,
    metric,
    model,
    questions,
)

TONES = questions([("I won!\nTone:", " joy"), ("A ghost!\nTone:", " fear"), ("She left.\nTone:", " sadness")])


def run(session: Any, samples: Any, folder: Path, **config: Any) -> tuple[Any, Any, dict[str, tuple[float, ...]]]:
    made = metric("accuracy")
    checked = configured(made, **config)
    rows = made.measure(model(folder), session, samples, checked, context(folder, allow=frozenset({"user-scripts"})))
    return made, checked, dict(rows)


def test_a_generated_answer_counts_when_it_is_the_target_up_to_case_and_space(tmp_path: Path) -> None:
    said = {"I won!\nTone:": "  JOY \nPhrase: next", "A ghost!\nTone:": " fearful", "She left.\nTone:": " sadness"}
    made, config, rows = run(AnsweringSession(said.__getitem__), TONES, tmp_path, method="generate")
    assert [row[0] for row in rows.values()] == [1.0, 0.0, 1.0]
    assert made.aggregate(list(rows.values()), "accuracy_score", config) == pytest.approx(2 / 3)
    assert made.aggregate(list(rows.values()), "exact_match", config) == pytest.approx(2 / 3)
    assert made.sub_type("accuracy_score", config).proportion


def test_case_and_punctuation_count_when_told_so(tmp_path: Path) -> None:
    loud = AnsweringSession(lambda prompt: " Joy!")
    sample = TONES[:1]
    assert run(loud, sample, tmp_path, method="generate")[2]["q0"][0] == 0.0
    assert run(loud, sample, tmp_path, method="generate", ignore_punctuation=True)[2]["q0"][0] == 1.0
    assert run(loud, sample, tmp_path, method="generate", ignore_punctuation=True, ignore_case=False)[2]["q0"][0] == 0.0


def test_an_expected_answer_of_two_lines_is_not_cut_at_the_first(tmp_path: Path) -> None:
    samples = questions([("Say it:", "one\ntwo")])
    session = AnsweringSession(lambda prompt: "one\ntwo")
    assert run(session, samples, tmp_path, method="generate")[2]["q0"][0] == 1.0
    assert run(session, samples, tmp_path, method="generate", stop=["\n"])[2]["q0"][0] == 0.0


def test_auto_generates_for_prompts_and_classifies_otherwise(tmp_path: Path) -> None:
    session = AnsweringSession(lambda prompt: " joy")
    assert run(session, TONES, tmp_path)[2]["q0"][0] == 1.0
    numbers = [Sample("a", {"x": np.array([0.0, 3.0])}, 1), Sample("b", {"x": np.array([0.0, 3.0])}, 0)]
    forward = ForwardSession(lambda batch: {"logits": batch["x"]})
    assert [row[0] for row in run(forward, numbers, tmp_path)[2].values()] == [1.0, 0.0]


def test_choice_takes_the_label_of_highest_log_likelihood(tmp_path: Path) -> None:
    # One character a token, the blank before a label included; each costs 1 nat unless it is likelier.
    session = LetterSession({"f": -0.5, "e": -0.5, "a": -0.5, "r": -0.5})
    made, config, rows = run(session, TONES, tmp_path, method="choice")
    assert [int(row[2]) for row in rows.values()] == [0, 0, 0]  # fear, of fear, joy, sadness
    assert rows["q1"][4:] == pytest.approx((-3.0, -4.0, -7.0))
    assert made.aggregate(list(rows.values()), "accuracy_score", config) == pytest.approx(1 / 3)


def test_choice_per_token_does_not_favour_short_labels(tmp_path: Path) -> None:
    session = LetterSession({"s": -0.1, "j": -0.1})
    samples = questions([("?", "sss"), ("?", "j")])
    assert [row[2] for row in run(session, samples, tmp_path, method="choice")[2].values()] == [0.0, 0.0]
    equal = run(session, samples, tmp_path, method="choice", length_normalized=True)[2]["q0"]
    assert equal[4] == pytest.approx(equal[5])


def test_labels_are_scored_after_the_same_number_of_tokens(tmp_path: Path) -> None:
    session = LetterSession({})
    run(session, questions([("ab", " x"), ("ab", " yy")]), tmp_path, method="choice")
    # The blank belongs to every label, so it is scored with each of them.
    assert all(list(labels[:2]) == [-100, -100] and labels[2] == ord(" ") for _, labels in session.scored)


def test_targets_outside_the_given_labels_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"sadness.*none of the labels"):
        run(LetterSession({}), TONES, tmp_path, method="choice", labels=["joy", "fear"])


def test_a_sample_without_prompt_or_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"sample a has no prompt.*prompt_template"):
        run(AnsweringSession(str), [Sample("a", {"text": "x"}, "y")], tmp_path, method="generate")
    with pytest.raises(EvaluationError, match="sample a has no target"):
        run(AnsweringSession(str), [Sample("a", {"prompt": "x"})], tmp_path, method="generate")


def test_class_names_of_the_model_give_targets_their_number(tmp_path: Path) -> None:
    made = metric("accuracy")
    config = configured(made, method="classify")
    names = json.dumps({"id2label": {"0": "Negative", "1": "Positive"}})
    samples = [Sample("a", {"x": np.array([0.0, 1.0])}, "positive"), Sample("b", {"x": np.array([0.0, 1.0])}, "other")]
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    with pytest.raises(EvaluationError, match=r"'other'.*none of the classes Negative, Positive"):
        made.measure(model(tmp_path, config__json=names), session, samples, config, context(tmp_path))
    rows = made.measure(model(tmp_path, config__json=names), session, samples[:1], config, context(tmp_path))
    assert rows["a"][:3] == (1.0, 1.0, 1.0)


def test_positions_with_a_label_of_their_own_are_rows(tmp_path: Path) -> None:
    logits = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    sample = Sample("s", {"x": logits}, np.array([1, 1, -100]))
    rows = run(ForwardSession(lambda batch: {"logits": batch["x"]}), [sample], tmp_path, method="classify")[2]
    assert {key: row[0] for key, row in rows.items()} == {"s#0": 1.0, "s#1": 0.0}


def test_a_short_sequence_is_judged_without_its_padding(tmp_path: Path) -> None:
    rows = [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    samples = [
        Sample("long", {"x": np.array(rows)}, np.array([1, 0, 0])),
        Sample("short", {"x": np.array(rows[:2])}, np.array([1, 1])),
    ]
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    found = run(session, samples, tmp_path, method="classify", batch_size=2)[2]
    assert {key: row[0] for key, row in found.items()} == {
        "long#0": 1,
        "long#1": 1,
        "long#2": 1,
        "short#0": 1,
        "short#1": 0,
    }


@pytest.mark.parametrize(
    ("name", "numbers", "right"),
    [
        ("y", [0.4, 0.9], [0.0, 1.0]),
        # One of them is no chance, so that none is.
        ("y", [0.4, 2.0], [1.0, 1.0]),
        ("logits", [0.4, 0.9], [1.0, 1.0]),
        ("logits", [-0.4, 0.9], [0.0, 1.0]),
    ],
)
def test_one_number_is_the_chance_of_class_one_or_its_logit(
    tmp_path: Path, name: str, numbers: list[float], right: list[float]
) -> None:
    samples = [Sample(str(index), {"x": np.array([number])}, 1) for index, number in enumerate(numbers)]
    session = ForwardSession(lambda batch: {name: batch["x"].astype(float)})
    rows = run(session, samples, tmp_path, method="classify")[2]
    assert [row[0] for row in rows.values()] == right


def test_a_threshold_and_top_k_hold_for_the_value_that_names_them(tmp_path: Path) -> None:
    samples = [Sample("a", {"x": np.array([0.4])}, 1), Sample("b", {"x": np.array([0.2])}, 1)]
    session = ForwardSession(lambda batch: {"y": batch["x"].astype(float)})
    options = {"f1_score": {"threshold": 0.3}, "recall": {"threshold": 0.1}}
    made, config, rows = run(session, samples, tmp_path, method="classify", metric_config=options)
    value = {
        name: made.aggregate(list(made.rows_of(rows, name, config).values()), name, config)
        for name in ("accuracy_score", "f1_score", "recall")
    }
    assert value == {"accuracy_score": 0.0, "f1_score": pytest.approx(2 / 3), "recall": 1.0}
    samples = [Sample("a", {"x": np.array([3.0, 2.0, 1.0])}, 1)]
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    options = {"accuracy": {"task": "multiclass", "num_classes": 3, "top_k": 2}}
    made, config, rows = run(session, samples, tmp_path, method="classify", metric_config=options)
    assert made.rows_of(rows, "accuracy", config)["a"][0] == 1.0
    assert made.rows_of(rows, "accuracy_score", config)["a"][0] == 0.0


def test_a_users_loader_and_post_processing_are_run_after_consent(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def loader(data_dir, batch_size, offset):\n"
        "    yield {'x': np.arange(4).reshape(2, 2) + offset}, np.array([1, 0])\n"
        "def best(output):\n"
        "    return output.argmax(1)\n"
    )
    config = {
        "user_config": {
            "user_script": "mine.py",
            "dataloader_func": "loader",
            "post_processing_func": "best",
            "func_kwargs": {"dataloader_func": {"offset": 5}},
            "batch_size": 2,
        }
    }
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    _, _, rows = run(session, [], tmp_path, **config)
    assert [row[0] for row in rows.values()] == [1.0, 0.0]
    assert session.batches[0]["x"][0, 0] == 5
    made = metric("accuracy")
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        made.measure(model(tmp_path), session, [], configured(made, **config), context(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metric_config": {"task": "multilabel"}}, "use binary or multiclass"),
        ({"metric_config": {"f1_score": {"avrage": "macro"}}}, "unknown option 'avrage'"),
        ({"metric_config": {"average": "samples"}}, "use micro, macro"),
        ({"user_config": {"dataloader_func": "f"}}, "add user_script"),
        ({"user_config": {"no_such_key": 1}}, "no_such_key"),
    ],
)
def test_a_wrong_config_says_what_would_be_right(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        configured(metric("accuracy"), **config)


def test_macro_accuracy_is_the_mean_recall_and_no_proportion(tmp_path: Path) -> None:
    samples = [Sample(str(i), {"x": np.array([1.0, 0.0, 0.0])}, t) for i, t in enumerate([0, 0, 0, 1])]
    session = ForwardSession(lambda batch: {"logits": batch["x"]})
    made, config, rows = run(session, samples, tmp_path, method="classify", metric_config={"average": "macro"})
    assert made.aggregate(list(rows.values()), "accuracy_score", config) == pytest.approx(0.5)
    assert not made.sub_type("accuracy_score", config).proportion


def test_what_a_script_makes_of_the_outputs_goes_before_generated_answers(tmp_path: Path) -> None:
    class Both(AnsweringSession, ForwardSession):
        capabilities = ("generate", "forward")

        def __init__(self) -> None:
            AnsweringSession.__init__(self, lambda prompt: "nonsense")
            ForwardSession.__init__(self, lambda b: {"y": b["x"]})

    (tmp_path / "mine.py").write_text("def second(y):\n    return y[:, 1]\n")
    samples = [
        Sample("a", {"prompt": "?", "x": np.array([0, 3])}, 3),
        Sample("b", {"prompt": "?", "x": np.array([3, 0])}, 3),
    ]
    made, config, rows = run(Both(), samples, tmp_path, user_script="mine.py", post_processing_func="second")
    assert [row[0] for row in rows.values()] == [1.0, 0.0]
    # So a runtime that only generates is none for it.
    assert made.needs(config) == ("forward",)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"top_k": 0}, "top_k 0: expected a whole number of at least 1"),
        ({"num_classes": "2"}, "num_classes '2': expected a whole number of at least 1"),
        ({"ignore_index": 1.5}, "ignore_index 1.5: expected a whole number"),
        ({"threshold": 5}, "threshold 5: expected a number from 0 to 1"),
    ],
)
def test_options_that_no_number_can_be_taken_with(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        configured(metric("accuracy"), metric_config={"f1_score": option})


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"]])
def test_labels_are_two_or_more_that_differ(labels: list[str]) -> None:
    with pytest.raises(ValidationError, match="expected two classes at least, each once"):
        configured(metric("accuracy"), labels=labels)

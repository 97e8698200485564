"""Text generation data: from rows to samples, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from tests.plugins.data.conftest import Loaded, write_rows

Load = Callable[..., Loaded]
END = 257


def config(**options: Any) -> dict[str, Any]:
    return {
        "load_dataset_config": {"data_name": "json", "data_files": "rows.jsonl", "split": "train"},
        "pre_process_data_config": options,
    }


ASKING = {"prompt_template": "Q: {q}\nA:", "answer_template": " {a}"}


def ids_of(text: str) -> list[int]:
    """What the byte tokenizer gives: the symbols of bytes in sorted order."""
    from drupe.testing import byte_tokenizer

    return list(byte_tokenizer()(text)["input_ids"])


def test_loss_is_taken_on_the_answer_and_its_end_only(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "one?", "a": "yes"}])
    (sample,), report = load(config(**ASKING))
    prompt, answer = "Q: one?\nA:", " yes"
    assert sample.inputs["prompt"] == prompt
    assert sample.inputs["text"] == prompt + answer
    assert sample.target == "yes"
    ids, labels = sample.inputs["input_ids"], sample.inputs["labels"]
    assert ids.tolist() == [*ids_of(prompt + answer), END]
    assert labels.tolist() == [-100] * len(ids_of(prompt)) + [*ids_of(answer), END]
    assert sample.inputs["attention_mask"].tolist() == [1] * len(ids)
    assert ids.dtype == np.int64
    assert (report["rows"], report["blocks"], report["label_tokens"]) == (1, 1, len(ids_of(answer)) + 1)


def test_repeated_prompts_have_one_content_key_whatever_their_answer(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "One", "a": "x"}, {"q": " one ", "a": "y"}, {"q": "two", "a": "x"}])
    samples, report = load(config(**ASKING))
    assert samples[0].content_key == samples[1].content_key != samples[2].content_key
    assert (report["samples"], report["different"]) == (3, 2)


def test_a_repeated_phrase_never_sits_on_both_sides(load: Load, tmp_path: Path) -> None:
    rows = [{"q": f"question {i % 40}", "a": "x"} for i in range(100)]
    write_rows(tmp_path / "rows.jsonl", rows)
    split = {"train": 0.5, "selection": 0.25, "certification": "rest"}
    train, _ = load(config(**ASKING), split=split, part="train")
    judged, report = load(config(**ASKING), split=split, part="evaluation")
    assert not {s.content_key for s in train} & {s.content_key for s in judged}
    assert len({s.content_key for s in train}) == 20
    assert len(train) == 50
    assert len(judged) == 20, "a phrase is judged once"
    assert report["parts"]["evaluation"]["different"] == 20


def test_rows_that_are_too_long_or_empty_are_dropped_and_told(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "x" * 60, "a": "y"}, {"q": None, "a": "y"}, {"q": "ok", "a": "y"}])
    samples, report = load(config(**ASKING, max_seq_len=32))
    assert [s.id for s in samples] == ["0000002"]
    assert report["dropped"] == {
        "longer than max_seq_len 32": 1,
        "empty: a column of the prompt or answer is null or blank": 1,
    }


def test_nothing_left_is_an_error_that_says_why(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "x" * 60, "a": "y"}])
    with pytest.raises(ConfigError, match=r"'d': none of the 1 rows of rows\.jsonl .*1 longer than max_seq_len 32"):
        load(config(**ASKING, max_seq_len=32))
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"rows\.jsonl has no rows"):
        load(config(**ASKING))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_template": "{question}", "answer_template": "{a}"}, "'question'; the data has: q, a"),
        ({"prompt_template": "{q}", "answer_col": "answer"}, "answer_col 'answer' is not there; the data has: q, a"),
        ({"text_cols": ["text"]}, "no column 'text'; it has: q, a"),
        ({"text_template": "{q} {nope}"}, "'nope'; the data has: q, a"),
        ({"chat_template": True}, "message_col 'messages' is not there; the data has: q, a"),
    ],
)
def test_absent_columns_are_told(options: dict[str, Any], message: str, load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "x", "a": "y"}])
    with pytest.raises(ConfigError, match=message):
        load(config(**options))


# Chats


def test_a_chats_last_answer_is_learned(load: Load, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    write_rows(tmp_path / "rows.jsonl", [{"messages": turns}, {"messages": turns[:1]}, {"messages": []}])
    (sample,), report = load(config(chat_template=True))
    assert sample.inputs["prompt"] == "[user]hi</s>[assistant]"
    assert sample.target == "ho"
    learned = sample.inputs["labels"][sample.inputs["labels"] != -100]
    assert learned.tolist() == [*ids_of("ho"), END]
    assert sum(report["dropped"].values()) == 2


def test_prompts_can_be_put_into_a_chat(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "hi", "a": "ho"}])
    (sample,), _ = load(config(prompt_template="{q}", answer_col="a", chat_template=True))
    assert sample.inputs["prompt"] == "[user]hi</s>[assistant]"
    assert sample.inputs["text"] == "[user]hi</s>[assistant]ho"


# Running text


def test_lines_are_samples_with_all_their_tokens(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "abc"}, {"text": "x" * 20}, {"text": ""}])
    samples, report = load(config(strategy="line-by-line", max_seq_len=10))
    assert [s.inputs["text"] for s in samples] == ["abc", "x" * 20]
    assert samples[0].inputs["labels"].tolist() == [*ids_of("abc"), END]
    assert len(samples[1].inputs["input_ids"]) == 10
    assert report["cut_tokens"] == {"beyond max_seq_len 10": 11}
    assert report["dropped"] == {"empty: no text": 1}


def test_the_older_tutorials_options(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"phrase": "wow", "tone": "joy"}])
    (sample,), _ = load(
        config(
            text_cols=["phrase", "tone"],
            text_template="### Phrase: {phrase}\n### Tone: {tone}",
            strategy="line-by-line",
            max_seq_len=64,
            padding=False,
            use_attention_mask=False,
        )
    )
    assert sample.inputs["text"] == "### Phrase: wow\n### Tone: joy"
    assert "attention_mask" not in sample.inputs


def test_padding_takes_no_loss(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "abc"}])
    for side in ("right", "left"):
        (sample,), _ = load(config(strategy="line-by-line", max_seq_len=8, padding="max_length", padding_side=side))
        mask = sample.inputs["attention_mask"]
        assert mask.tolist() == ([1] * 4 + [0] * 4 if side == "right" else [0] * 4 + [1] * 4)
        assert (sample.inputs["labels"][mask == 0] == -100).all()
        assert (sample.inputs["input_ids"][mask == 0] == 258).all()


def test_random_lines_are_drawn_by_seed(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": f"row {i}"} for i in range(50)])
    options = config(strategy="line-by-line-random", max_samples=10)
    first, again, other = (load(options, seed=seed)[0] for seed in (1, 1, 2))
    assert [s.id for s in first] == [s.id for s in again] != [s.id for s in other]
    assert len({s.id for s in first}) == 10


def tokens_of(samples: Any) -> list[int]:
    return [int(i) for s in samples for i in s.inputs["input_ids"]]


def test_joined_blocks_hold_every_token_and_the_last_may_be_short(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "abcdefg"}, {"text": "hijkl"}])
    samples, report = load(config(strategy="join", max_seq_len=6, joiner="\n\n"))
    stream = [*ids_of("abcdefg"), END, *ids_of("\n\n"), *ids_of("hijkl"), END]
    assert tokens_of(samples) == stream
    assert [len(s.inputs["input_ids"]) for s in samples] == [6, 6, 4]
    assert (report["tokens"], report["tokens_used"], report["blocks"]) == (16, 16, 3)
    dropped, report = load(config(strategy="join", max_seq_len=6, drop_last=True))
    assert [len(s.inputs["input_ids"]) for s in dropped] == [6, 6]
    assert report["dropped"] == {"the last block, of 4 tokens (drop_last)": 1}


def test_text_shorter_than_a_block_is_still_a_sample(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "short"}])
    samples, _ = load(config(strategy="join", max_seq_len=2048))
    assert len(samples) == 1


def test_sliding_windows_take_loss_once_on_each_token(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "abcdefghijklmnop"}])
    samples, _ = load(config(strategy="join-sliding-window", max_seq_len=8, stride=4, add_special_tokens=False))
    learned = [int(label) for s in samples for label in s.inputs["labels"] if label != -100]
    assert learned == ids_of("abcdefghijklmnop")
    assert all(len(s.inputs["input_ids"]) == 8 for s in samples)
    with pytest.raises(ConfigError, match=r"samples overlap \(join-sliding-window\)"):
        load(config(strategy="join-sliding-window", max_seq_len=8, stride=4), split={"train": 0.5}, part="train")


def test_random_blocks_are_whole_and_by_seed(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": f"some text number {i}"} for i in range(20)])
    options = config(strategy="join-random", max_seq_len=32, max_samples=5, random_seed=3)
    samples, _ = load(options)
    assert [len(s.inputs["input_ids"]) for s in samples] == [32] * 5
    assert tokens_of(samples) == tokens_of(load(options)[0])


def test_max_samples_is_kept_and_told(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": f"row {i}"} for i in range(9)])
    samples, report = load(config(strategy="line-by-line", max_samples=4))
    assert [s.inputs["text"] for s in samples] == ["row 0", "row 1", "row 2", "row 3"]
    assert report["dropped"] == {"beyond max_samples": 5}
    assert len(load(config(strategy="join", max_seq_len=8, max_samples=2))[0]) == 2


def test_without_a_tokenizer_samples_hold_text(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "hi", "a": "ho"}])
    bare = Model("onnx", {"model.onnx": ""}, {}, path=tmp_path)
    (sample,), _ = load(config(**ASKING), model=bare)
    assert set(sample.inputs) == {"prompt", "text"}


def test_an_answer_that_merges_with_the_prompt_keeps_the_prompts_tokens(load: Load, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "b": 1, "ab": 2, "</s>": 3}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path / "merging")
    model = Model("hf", {"tokenizer.json": ""}, {}, path=tmp_path / "merging")
    write_rows(tmp_path / "rows.jsonl", [{"q": "a", "a": "b"}])
    (sample,), _ = load(config(prompt_template="{q}", answer_template="{a}"), model=model)
    assert sample.inputs["input_ids"].tolist() == [0, 1, 3], "not the merged token 2"


def test_a_formatting_function_needs_consent(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "hi"}])
    (tmp_path / "mine.py").write_text("def shout(row):\n    return row['q'].upper()\n")
    options = {**config(text_formatting_func="shout", strategy="line-by-line"), "user_script": "mine.py"}
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        load(options)
    (sample,), _ = load(options, allow=["user-scripts"])
    assert sample.inputs["text"] == "HI"

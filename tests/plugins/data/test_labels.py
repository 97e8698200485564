"""Labels: by name where the data and the model have the same names, one for each word, none where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from tests.plugins.data.conftest import Loaded, write_rows

Load = Callable[..., Loaded]


@pytest.fixture
def named_model(tiny_bert_dir: Path, tmp_path: Path) -> Model:
    """The tiny BERT, whose classes are called no and yes, in this order."""
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    return Model.from_dir("hf", folder, {"task": "text-classification"})


def saved(folder: Path, *names: str) -> None:
    """Write a data set whose class 0 is called as the first name, as a saved one and as a Parquet file."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=features)
    rows.save_to_disk(str(folder / "saved"))
    rows.to_parquet(str(folder / "rows.parquet"))


@pytest.mark.parametrize("where", [{"data_name": "saved"}, {"data_files": "rows.parquet"}])
def test_numbers_follow_the_names(load: Load, tmp_path: Path, named_model: Model, where: dict[str, Any]) -> None:
    saved(tmp_path, "Yes", "No")
    samples, account = load({**where, "input_cols": "text"}, model=named_model)
    assert [sample.target for sample in samples] == [1, 0, -1]
    assert account["labels"] == "numbered by name as the model does: Yes 0 → 1, No 1 → 0"
    samples, account = load({**where, "input_cols": "text", "align_labels": False}, model=named_model)
    assert [sample.target for sample in samples] == [0, 1, -1]
    assert "labels" not in account


def test_other_names_leave_numbers_as_they_are(load: Load, tmp_path: Path, named_model: Model) -> None:
    saved(tmp_path, "spam", "ham")
    samples, _ = load({"data_name": "saved", "input_cols": "text"}, model=named_model)
    assert [sample.target for sample in samples] == [0, 1, -1]
    with pytest.raises(ConfigError, match="the model has no label 'spam', 'ham' of column 'label'; it has: no, yes"):
        load({"data_name": "saved", "input_cols": "text", "align_labels": True}, model=named_model)


def test_an_empty_label_of_a_csv_file_is_none(load: Load, tmp_path: Path, named_model: Model) -> None:
    (tmp_path / "r.csv").write_text("text,label\na,yes\nb,\n")
    samples, _ = load({"data_files": "r.csv", "input_cols": "text"}, model=named_model)
    assert [sample.target for sample in samples] == ["yes", None]


def tagged(load: Load, folder: Path, model: Model, tokens: Any, tags: Any) -> np.ndarray:
    write_rows(folder / "r.jsonl", [{"tokens": tokens, "ner_tags": tags}])
    config = {"data_files": "r.jsonl", "pre_process_data_config": {"type": "ner_huggingface_preprocess"}}
    samples, _ = load(config, model=model)
    assert isinstance(samples[0].target, np.ndarray)
    return samples[0].target


def test_names_of_tags_become_the_models_numbers(load: Load, tmp_path: Path, named_model: Model) -> None:
    assert tagged(load, tmp_path, named_model, ["a", "bcd"], ["yes", "NO"]).tolist() == [-100, 1, 0, -100, -100, -100]
    assert tagged(load, tmp_path, named_model, ["a", "b"], [-100, 1]).tolist() == [-100, -100, 1, -100]


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        (["a", "b"], [1], "row 0: 2 words and 1 labels; expected one each"),
        (["a", "b"], [1, 0, 1], "row 0: 2 words and 3 labels"),
        (["a", "b"], [1, None], "row 0 has the label None for a word; expected a whole number or a name"),
        (["a", "b"], ["yes", "maybe"], "row 0 has the label 'maybe'; the model's are: no, yes"),
        (["a", "b"], 1, "row 0: the label is 1; expected a list with one for each word"),
        ("a b", [1, 0], "row 0: expected a list of words, found 'a b'"),
    ],
)
def test_tags_that_do_not_fit_are_one_message(
    load: Load, tmp_path: Path, named_model: Model, tokens: Any, tags: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tagged(load, tmp_path, named_model, tokens, tags)


def test_tokens_that_are_cut_off_are_counted(load: Load, tmp_path: Path, named_model: Model) -> None:
    write_rows(tmp_path / "r.jsonl", [{"text": "a " * 300, "label": 1}, {"text": "a", "label": 0}])
    samples, account = load({"data_files": "r.jsonl", "input_cols": "text", "max_length": 100}, model=named_model)
    assert len(samples[0].inputs["input_ids"]) == 100
    assert account["cut_tokens"] == {"beyond 100 tokens a text": 202}


def test_a_tokenizer_without_a_limit_takes_the_models(load: Load, tmp_path: Path, named_model: Model) -> None:
    path = named_model.folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**30}))
    places = json.loads((named_model.folder / "config.json").read_text())["max_position_embeddings"]
    write_rows(tmp_path / "r.jsonl", [{"text": "a " * 4000, "label": 1}])
    samples, _ = load({"data_files": "r.jsonl", "input_cols": "text"}, model=named_model)
    assert len(samples[0].inputs["input_ids"]) == places


def test_columns_that_are_no_arrays_are_one_message(load: Load, tmp_path: Path) -> None:
    raw = {"data_files": "r.jsonl", "pre_process_data_config": {"type": "skip_pre_process"}}
    for value in ([[1, 2], [3]], {"a": 1}):
        write_rows(tmp_path / "r.jsonl", [{"x": value, "label": 1}])
        with pytest.raises(ConfigError, match=r"row 0: x is .*; expected a number, a text or lists of equal length"):
            load(raw)

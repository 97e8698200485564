"""HuggingfaceContainer: its config, checks, identity, files and splits; classification."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError, Fault
from drupe.core.model import Model
from drupe.plugins.data.container import HuggingfaceContainer, HuggingfaceDataConfig
from drupe.plugins.data.plugin import drupe_data_containers
from tests.plugins.data.conftest import Loaded, write_rows
from tests.support.hub import COMMIT, Hub, serving

Load = Callable[..., Loaded]
CONTAINER = HuggingfaceContainer(drupe_data_containers()[0])


def parsed(**config: Any) -> HuggingfaceDataConfig:
    return HuggingfaceDataConfig.model_validate(config)


def checked(folder: Path, **config: Any) -> list[Fault]:
    return list(CONTAINER.check(parsed(**config), folder))


FILES = {"data_name": "json", "data_files": "rows.jsonl"}


# The config


def test_groups_and_flat_keys_read_alike() -> None:
    grouped = parsed(load_dataset_config=FILES, pre_process_data_config={"strategy": "join", "max_seq_len": 64})
    assert parsed(**FILES, strategy="join", max_seq_len=64) == grouped


def test_unknown_keys_of_built_in_components_are_faults() -> None:
    with pytest.raises(ValidationError, match="max_sampels"):
        parsed(pre_process_data_config={"max_sampels": 5})


def test_a_users_function_takes_any_argument() -> None:
    config = parsed(user_script="s.py", load_dataset_config={"type": "my_rows", "start": 0, "end": 10})
    assert config.load_dataset_config.params == {"start": 0, "end": 10}
    assert config.functions == {"load_dataset_config": "my_rows"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_template": "{a}"}, "answer_template or answer_col is missing"),
        ({"answer_col": "a"}, "prompt_template is missing"),
        ({"prompt_template": "{a}", "answer_col": "b", "strategy": "join"}, "prompts with answers are not joined"),
        ({"strategy": "join-sliding-window"}, "needs a stride"),
        ({"strategy": "line-by-line-random"}, "needs max_samples"),
        ({"strategy": "line-by-lines"}, "line-by-line-random"),
        ({"padding": True, "drop_short_sequences": True}, "exclude each other"),
        ({"padding": True, "use_attention_mask": False, "strategy": "line-by-line"}, "needs use_attention_mask"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parsed(pre_process_data_config=options)


def test_prompting_is_told_for_a_template_of_one_column() -> None:
    asking = {"prompt_template": "Q: {q}\nA:", "answer_template": " {a}"}
    assert CONTAINER.prompting(parsed(**asking)) == {"prompt_template": "Q: {q}\nA:", "stop": ["\n"]}
    assert CONTAINER.prompting(parsed(prompt_template="{q} {r}", answer_col="a")) == {}
    assert CONTAINER.prompting(parsed(strategy="join")) == {}


# Checks before loading


def test_rows_are_counted_where_that_needs_no_loading(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"a": str(number)} for number in range(10)])

    def count(split: str = "train", files: str = "rows.jsonl", **prepared: Any) -> int | None:
        loading = {"data_name": "json", "data_files": files, "split": split}
        config = parsed(load_dataset_config=loading, pre_process_data_config={"text_template": "{a}", **prepared})
        return CONTAINER.count(config, tmp_path)

    assert count() == 10
    assert count("train[:40%]") == 4
    assert count(max_samples=3) == 3
    assert count(strategy="join") is None
    assert count(files="absent.jsonl") is None
    assert CONTAINER.count(parsed(load_dataset_config={"data_name": "someone/rows"}), tmp_path) is None


def test_an_absent_file_is_a_need(tmp_path: Path) -> None:
    (fault,) = checked(tmp_path, load_dataset_config=FILES)
    assert fault.kind == "needs"
    assert fault.path == "load_dataset_config.data_files"
    assert "rows.jsonl does not exist" in fault.found


@pytest.mark.parametrize(
    ("options", "path", "found"),
    [
        ({"prompt_template": "{qq}", "answer_template": "{a}"}, "prompt_template", "'qq'"),
        ({"text_cols": ["q", "text"]}, "text_cols", "'text'"),
        ({"input_cols": "sentence"}, "input_cols", "'sentence'"),
        ({"text_template": "{q"}, "text_template", "expected '}'"),
    ],
)
def test_absent_columns_are_found_before_loading(
    options: dict[str, Any], path: str, found: str, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "x", "a": "y"}])
    (fault,) = checked(tmp_path, load_dataset_config=FILES, pre_process_data_config=options)
    assert fault.path == f"pre_process_data_config.{path}"
    assert found in fault.found
    assert fault.kind == "fault"


def test_a_malformed_first_row_and_an_absent_split_are_found(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": 1}\n{"q": \n')
    (fault,) = checked(tmp_path, load_dataset_config=FILES, pre_process_data_config={"text_cols": "q"})
    assert "line 2" in fault.found
    write_rows(tmp_path / "rows.jsonl", [{"q": 1}])
    (fault,) = checked(tmp_path, load_dataset_config={**FILES, "split": "test"})
    assert fault.path == "load_dataset_config.split"
    assert fault.expected == "one of: train"


def test_functions_without_a_script_are_missing(tmp_path: Path) -> None:
    kinds = [f.kind for f in checked(tmp_path, load_dataset_config={"type": "my_rows"})]
    assert kinds == ["missing"]
    assert not checked(tmp_path, load_dataset_config={"type": "my_rows"}, user_script="s.py")
    assert [f.kind for f in checked(tmp_path, data_name="glue", post_process_data_config={"type": "mine"})] == [
        "missing"
    ]


# Files, splits and identity


def test_split_files_parts_and_sums(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": f"a{i}"} for i in range(10)])
    write_rows(tmp_path / "b.jsonl", [{"text": f"b{i}"} for i in range(4)])

    def texts(split: str, files: Any) -> list[str]:
        loading = {"data_name": "json", "data_files": files, "split": split}
        samples, _ = load({"load_dataset_config": loading, "pre_process_data_config": {"strategy": "line-by-line"}})
        return [str(s.inputs["text"]) for s in samples]

    named = {"train": "a.jsonl", "test": ["b.jsonl"]}
    assert texts("test", named) == ["b0", "b1", "b2", "b3"]
    assert texts("train[:20%]+test[-1:]", named) == ["a0", "a1", "b3"]
    assert texts("train[8:]", "*.jsonl") == ["a8", "a9", "b0", "b1", "b2", "b3"]
    with pytest.raises(ConfigError, match='all "train"'):
        texts("test", "a.jsonl")
    with pytest.raises(ConfigError, match="can't be read"):
        texts("train[", named)


def test_a_folder_of_files_is_split_by_name(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"text": "one"}])
    (folder / "test.csv").write_text("text\ntwo\n")
    for split, text in (("train", "one"), ("test", "two")):
        loading = {"data_name": "mine", "split": split}
        (sample,), _ = load({"load_dataset_config": loading, "pre_process_data_config": {"strategy": "line-by-line"}})
        assert sample.inputs["text"] == text


def test_a_saved_data_set_is_read(load: Load, tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"text": "saved"}]).save_to_disk(str(tmp_path / "saved"))
    (sample,), _ = load({"data_name": "saved", "strategy": "line-by-line"})
    assert sample.inputs["text"] == "saved"


def test_identity_follows_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "a"}])
    write_rows(tmp_path / "b.jsonl", [{"text": "b"}])
    loading = {"data_name": "json", "data_files": {"train": "a.jsonl", "test": "b.jsonl"}}
    config = parsed(load_dataset_config=loading)
    first = CONTAINER.identity(config, tmp_path)
    write_rows(tmp_path / "b.jsonl", [{"text": "changed"}])
    assert CONTAINER.identity(config, tmp_path) == first
    write_rows(tmp_path / "a.jsonl", [{"text": "changed"}])
    assert CONTAINER.identity(config, tmp_path) != first
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        CONTAINER.identity(config, tmp_path)


def test_identity_of_hub_data_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "hub" / "datasets" / "acme" / "rows").mkdir(parents=True)
    with serving(Hub(tmp_path / "hub")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found = CONTAINER.identity(parsed(data_name="acme/rows"), tmp_path)
    assert found["rows"] == {"hub": "acme/rows", "commit": COMMIT}


def test_hub_data_is_read_at_its_commit_whole_or_streamed(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "acme" / "rows"
    folder.mkdir(parents=True)
    write_rows(folder / "train.jsonl", [{"text": "one"}, {"text": "two"}])
    write_rows(folder / "extra.jsonl", [{"text": "three"}])
    # In a process of its own: the libraries read the hub's address when they are imported.
    code = (
        "from pathlib import Path\n"
        "from drupe.core.context import JobContext\n"
        "from drupe.plugins.data.dataset import load_table\n"
        "from drupe.plugins.data.options import LoadDataset\n"
        "here = Path('.')\n"
        "for options in ({}, {'streaming': True}, {'data_files': 'extra.jsonl'}):\n"
        "    table = load_table(LoadDataset(data_name='acme/rows', **options), here, JobContext(here, here), 1)\n"
        "    print(table.origin, *[row['text'] for row in table.rows])\n"
    )
    with serving(Hub(tmp_path / "hub")) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, streamed, extra = done.stdout.splitlines()
    assert streamed == f"acme/rows@{COMMIT[:8]} one"
    assert whole == f"acme/rows@{COMMIT[:8]} one two"
    assert extra == f"acme/rows@{COMMIT[:8]} three"


# Classification


def classifying(**options: Any) -> dict[str, Any]:
    return {"load_dataset_config": FILES, "pre_process_data_config": options}


@pytest.fixture
def bert(tiny_bert_dir: Path) -> Model:
    return Model("hf", {"tokenizer.json": ""}, {"task": "text-classification"}, path=tiny_bert_dir)


def test_texts_and_pairs_with_labels(load: Load, bert: Model, tmp_path: Path) -> None:
    rows = [{"one": "good", "two": "bad", "label": 1}, {"one": "x", "two": None, "label": 0}]
    write_rows(tmp_path / "rows.jsonl", rows)
    (sample,), report = load(classifying(input_cols=["one", "two"], max_length=16, padding="max_length"), model=bert)
    assert sample.target == 1
    assert all(sample.inputs[name].shape == (16,) for name in ("input_ids", "attention_mask", "token_type_ids"))
    assert set(sample.inputs["token_type_ids"].tolist()) == {0, 1}
    assert report["dropped"] == {"empty: two is null": 1}
    both, _ = load(classifying(input_cols="one"), model=bert)
    assert [s.target for s in both] == [1, 0]
    assert len(both[0].inputs["input_ids"]) > len(both[1].inputs["input_ids"])


def test_the_models_task_decides_where_the_options_do_not(load: Load, bert: Model, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "good", "label": 1}])
    (sample,), _ = load(classifying(), model=bert)
    assert sample.target == 1


def test_label_names_are_aligned_with_the_models(load: Load, bert: Model, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "good", "label": "label_1"}])
    (sample,), _ = load(classifying(input_cols="text", align_labels=True), model=bert)
    assert sample.target == 1
    write_rows(tmp_path / "rows.jsonl", [{"text": "good", "label": "other"}])
    with pytest.raises(ConfigError, match="row 0 has the label 'other'"):
        load(classifying(input_cols="text", align_labels=True), model=bert)


def test_words_with_a_label_each(load: Load, bert: Model, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"tokens": ["ab", "c"], "ner_tags": [3, 5]}])
    options = classifying(type="ner_huggingface_preprocess", input_cols="tokens", label_col="ner_tags")
    (sample,), _ = load(options, model=bert)
    # [CLS] a ##b c [SEP]
    assert np.asarray(sample.target).tolist() == [-100, 3, -100, 5, -100]


def test_absent_label_column(load: Load, bert: Model, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "x"}])
    with pytest.raises(ConfigError, match="label_col: the data has no column 'y'; it has: text"):
        load(classifying(input_cols="text", label_col="y"), model=bert)


def test_rows_as_they_are(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"x": [1.0, 2.0], "name": "n", "label": 3}])
    (sample,), _ = load(classifying(type="skip_pre_process"))
    assert sample.inputs["x"].tolist() == [1.0, 2.0]
    assert sample.inputs["name"] == "n"
    assert sample.target == 3


# A user's functions


SCRIPT = """
import numpy as np

def my_rows(start, end):
    return [{"text": f"row {i}"} for i in range(start, end)]

class Pairs:
    def __len__(self):
        return 3
    def __getitem__(self, index):
        return {"x": np.full((2,), index)}, index

def my_pairs():
    return Pairs()

def my_loader(items, batch_size):
    for start in range(0, len(items), batch_size):
        chosen = [items[i] for i in range(start, min(start + batch_size, len(items)))]
        yield {"x": np.stack([c[0]["x"] for c in chosen])}, np.array([c[1] for c in chosen])
"""


def test_functions_of_a_script_need_consent_and_give_samples(load: Load, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(SCRIPT)
    rows = {"user_script": "s.py", "load_dataset_config": {"type": "my_rows", "start": 1, "end": 4}}
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        load(rows)
    samples, _ = load({**rows, "pre_process_data_config": {"strategy": "line-by-line"}}, allow=["user-scripts"])
    assert [s.inputs["text"] for s in samples] == ["row 1", "row 2", "row 3"]
    pairs = {"user_script": "s.py", "load_dataset_config": {"type": "my_pairs"}}
    samples, _ = load(pairs, allow=["user-scripts"])
    assert [(s.inputs["x"].tolist(), s.target) for s in samples] == [([0, 0], 0), ([1, 1], 1), ([2, 2], 2)]
    loader = {"dataloader_config": {"type": "my_loader", "batch_size": 2}}
    batched, _ = load({**pairs, **loader}, allow=["user-scripts"])
    assert [(s.inputs["x"].tolist(), s.target) for s in batched] == [([0, 0], 0), ([1, 1], 1), ([2, 2], 2)]
    with pytest.raises(ConfigError, match="defines no other"):
        load({"user_script": "s.py", "load_dataset_config": {"type": "other"}}, allow=["user-scripts"])


def test_items_of_a_function_may_be_batches_already(load: Load, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(SCRIPT)
    config = {"user_script": "s.py", "load_dataset_config": {"type": "my_pairs"}}
    whole, _ = load({**config, "dataloader_config": {"type": "no_auto_batch_dataloader"}}, allow=["user-scripts"])
    assert [s.extras for s in whole] == [{"whole_batch": True}] * 3
    single, _ = load(config, allow=["user-scripts"])
    assert [s.extras for s in single] == [{}] * 3


def test_a_local_dataset_of_nothing_leaves_it_to_the_next_function(load: Load, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("def made(items, data_num):\n    yield from [{'x': [[0.0]]}] * data_num\n")
    config = {
        "user_script": "s.py",
        "load_dataset_config": {"type": "local_dataset"},
        "dataloader_config": {"type": "made", "data_num": 3},
    }
    assert not checked(tmp_path, **config)
    samples, _ = load(config, allow=["user-scripts"])
    assert [s.inputs["x"].tolist() for s in samples] == [[0.0]] * 3
    write_rows(tmp_path / "rows.jsonl", [{"text": "x"}])
    rows, _ = load({"load_dataset_config": {"type": "local_dataset", "data_files": "rows.jsonl"}})
    assert [s.inputs["text"] for s in rows] == ["x"]


@pytest.mark.parametrize(
    ("name", "text"), [("rows.json", " [ ]\n"), ("rows.jsonl", "\n"), ("rows.csv", "text,label\n")]
)
def test_files_without_rows_are_told_before_work(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    kind = "csv" if name.endswith("csv") else "json"
    [fault] = checked(tmp_path, load_dataset_config={"data_name": kind, "data_files": name})
    assert str(fault) == f"load_dataset_config.data_files: {name} has no rows; expected a row at least"


# Rows by the values of their columns


LINES = {"text_cols": "text", "strategy": "line-by-line"}
ROWS = [{"text": f"row {n}", "language": "Python" if n % 2 else "C", "size": n} for n in range(6)]


def test_rows_by_the_values_of_their_columns(tmp_path: Path, load: Load) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    group = {"data_name": "json", "data_files": "rows.jsonl", "col_filters": {"language": "Python"}}
    config = {
        "load_dataset_config": group,
        "pre_process_data_config": {"text_cols": "text", "strategy": "line-by-line"},
    }
    samples, _ = load(config)
    assert len(samples) == 3
    assert len(load({**config, "load_dataset_config": {**group, "col_filters": {"size": 4}}})[0]) == 1


def test_a_saved_data_set_is_filtered_as_well(tmp_path: Path, load: Load) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    group = {"data_name": "saved", "col_filters": {"language": "C", "size": 4}}
    samples, _ = load({"load_dataset_config": group, "pre_process_data_config": LINES})
    assert len(samples) == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"langage": "C"}, "the data has no column 'langage'; it has: text"),
        ({"language": "Rust"}, "none of the 6 rows has"),
    ],
)
def test_a_filter_that_leaves_nothing_is_told(tmp_path: Path, load: Load, wanted: dict[str, Any], message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    group = {"data_name": "json", "data_files": "rows.jsonl", "col_filters": wanted}
    with pytest.raises(ConfigError, match=message):
        load({"load_dataset_config": group, "pre_process_data_config": {"text_cols": "text"}})


FOR_DATASETS = """
def prepare(rows, **kwargs):
    assert rows.features["n"].dtype == "int64" and rows.info is not None
    return [({"x": [row["n"]]}, row["n"]) for row in rows.shuffle(seed=0)]

class Made:
    def __init__(self, make):
        self.make = make

    def __getitem__(self, index):
        return self.make(index), None

def noise(dataset, batch_size):
    return Made(lambda index: {"sample": [[index] * 4] * 2, "timestep": [index], "return_dict": False})
"""


def test_a_function_that_prepares_gets_rows_as_the_datasets_library_has_them(load: Load, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(FOR_DATASETS)
    write_rows(tmp_path / "rows.jsonl", [{"n": i} for i in range(5)])
    config = {"user_script": "s.py", "load_dataset_config": FILES, "pre_process_data_config": {"type": "prepare"}}
    samples, _ = load(config, allow=["user-scripts"])
    assert sorted(s.target for s in samples) == [0, 1, 2, 3, 4]


def test_a_loader_of_made_up_inputs_has_no_end_and_its_batches_are_whole(load: Load, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(FOR_DATASETS)
    loading = {"load_dataset_config": {"type": "local_dataset"}, "dataloader_config": {"type": "noise"}}
    samples, report = load({"user_script": "s.py", **loading}, allow=["user-scripts"])
    assert 1 < len(samples) < 100 and "no end" in report["loader"]
    assert samples[1].extras == {"whole_batch": True}
    assert {name: np.shape(value) for name, value in samples[1].inputs.items()} == {
        "sample": (2, 4),
        "timestep": (1,),
        "return_dict": (),
    }

"""Folders of data: which files are read, as which split, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drupe.core.errors import ConfigError
from tests.plugins.data.conftest import Loaded
from tests.plugins.data.test_container import CONTAINER, checked, parsed

Load = Callable[..., Loaded]


def csv(folder: Path, name: str, *texts: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text\n" + "".join(f"{text}\n" for text in texts), encoding="utf-8")


def texts(load: Load, split: str = "train", **options: str) -> list[str]:
    samples, _ = load({"data_name": "mine", "split": split, "strategy": "line-by-line", **options})
    return [str(sample.inputs["text"]) for sample in samples]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/x.csv", "test/x.csv"),
        ("data/training-set/x.csv", "data/eval/x.csv"),
        ("imdb-train.csv", "imdb_test.csv"),
        ("train-00000-of-00001.csv", "test-00000-of-00001.csv"),
    ],
)
def test_splits_by_folders_and_by_names(load: Load, tmp_path: Path, train: str, test: str) -> None:
    csv(tmp_path / "mine", train, "taught")
    csv(tmp_path / "mine", test, "asked")
    assert texts(load) == ["taught"]
    assert texts(load, "test") == ["asked"]


def test_a_word_that_begins_like_a_split_is_none(load: Load, tmp_path: Path) -> None:
    csv(tmp_path / "mine", "testimony.csv", "a")
    csv(tmp_path / "mine", "developers.csv", "b")
    assert texts(load) == ["b", "a"]


def test_what_describes_a_data_set_and_what_is_hidden_is_not_read(load: Load, tmp_path: Path) -> None:
    csv(tmp_path / "mine", "train.csv", "a")
    csv(tmp_path / "mine", ".ipynb_checkpoints/train-checkpoint.csv", "old")
    (tmp_path / "mine" / "LICENSE.txt").write_text("Do as you like.\n")
    (tmp_path / "mine" / "dataset_infos.json").write_text('{"default": {"description": "x"}}')
    assert texts(load) == ["a"]


def test_a_split_of_several_formats_is_refused(load: Load, tmp_path: Path) -> None:
    csv(tmp_path / "mine", "a.csv", "a")
    (tmp_path / "mine" / "notes.txt").write_text("a note\n")
    (fault,) = checked(tmp_path, data_name="mine")
    assert "several formats for the split train (csv: a.csv; text: notes.txt)" in fault.found
    samples, _ = load({"data_name": "csv", "data_dir": "mine", "strategy": "line-by-line"})
    assert [sample.inputs["text"] for sample in samples] == ["a"]


def test_a_folder_with_a_loading_script_is_refused_and_the_script_not_run(load: Load, tmp_path: Path) -> None:
    csv(tmp_path / "mine", "a.csv", "a")
    (tmp_path / "mine" / "mine.py").write_text("raise SystemExit('ran')")
    (fault,) = checked(tmp_path, data_name="mine", trust_remote_code=True)
    assert "loaded by a script, mine.py, which is not run here" in fault.found
    with pytest.raises(ConfigError, match=r"loaded by a script, mine.py"):
        load({"data_name": "mine", "strategy": "line-by-line"})
    samples, _ = load({"data_files": "mine/a.csv", "strategy": "line-by-line"})
    assert len(samples) == 1


def test_a_subset_is_a_folder_that_is_there(load: Load, tmp_path: Path) -> None:
    csv(tmp_path / "mine", "one/a.csv", "a")
    csv(tmp_path / "mine", "two/a.csv", "b")
    assert texts(load, subset="two") == ["b"]
    (fault,) = checked(tmp_path, data_name="mine", subset="three")
    assert fault.found.endswith("there are: one, two")


def test_parts_and_sums_of_saved_data_sets(load: Load, tmp_path: Path) -> None:
    import datasets

    train = datasets.Dataset.from_dict({"text": [f"t{number}" for number in range(10)]})
    test = datasets.Dataset.from_dict({"text": ["x", "y"]})
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "mine"))
    assert texts(load, "train[5:7]") == ["t5", "t6"]
    assert texts(load, "train[:10%]+test") == ["t0", "x", "y"]
    train.save_to_disk(str(tmp_path / "alone"))
    assert texts(load, "train[-2:]", data_name="alone") == ["t8", "t9"]


def test_a_saved_data_set_that_is_broken_is_one_message(load: Load, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="mine is no data set that datasets saved, or not whole"):
        texts(load)


def test_files_of_one_name_in_several_folders_all_count_for_what_the_data_is(tmp_path: Path) -> None:
    csv(tmp_path / "mine", "a/x.csv", "one")
    csv(tmp_path / "mine", "b/x.csv", "two")
    config = parsed(data_name="mine")
    before = CONTAINER.identity(config, tmp_path)
    csv(tmp_path / "mine", "a/x.csv", "ein")
    assert CONTAINER.identity(config, tmp_path) != before

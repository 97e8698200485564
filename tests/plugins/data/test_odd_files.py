"""Files of odd shapes: what they say is read as other libraries read it, or refused in one message."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError, HostError
from drupe.plugins.data.rows import columns_of, first_columns, read_file
from tests.plugins.data.conftest import Loaded, write_rows
from tests.plugins.data.test_container import checked, parsed

Load = Callable[..., Loaded]
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def rows_of(path: Path, text: str | bytes, kind: str = "csv") -> list[Any]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(path, kind)


def test_words_that_python_takes_for_numbers_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    assert rows_of(path, "a,b,c,d\n1_000,nan,٣,nan\n2,inf,4,2\n")[0] | {"d": 0} == {
        "a": "1_000",
        "b": "nan",
        "c": "٣",
        "d": 0,
    }
    assert [row["d"] for row in read_file(path, "csv")][1] == 2.0


def test_a_value_of_a_csv_file_may_be_long(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "r.csv", "a,b\n" + "word " * 60_000 + ",1\n")
    assert len(row["a"]) == 300_000


def test_lines_within_quotes_do_not_disturb_the_look_at_a_big_file(tmp_path: Path) -> None:
    lines = "".join(
        f'"row {number}\nof several\nlines, that go on and on and on",{number % 2}\n' for number in range(25_000)
    )
    path = tmp_path / "r.csv"
    path.write_text("text,label\n" + lines, encoding="utf-8")
    assert path.stat().st_size > 1 << 20
    assert first_columns(path, "csv") == ["text", "label"]


def test_only_ends_of_lines_end_lines_of_text(tmp_path: Path) -> None:
    found = rows_of(tmp_path / "r.txt", "a\u2028b\x0cc\x85d\r\ne\n\nf", "text")
    assert [row["text"] for row in found] == ["a\u2028b\x0cc\x85d", "e", "", "f"]


def test_a_column_may_begin_late(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", [{"a": 1}] * 1500 + [{"a": 1, "b": 2}])
    assert first_columns(path, "json") == ["a", "b"]
    assert columns_of(read_file(path, "json")) == ["a", "b"]


@pytest.mark.parametrize("name", ["r.TSV", "r.tsv.gz"])
def test_tabs_by_the_name(tmp_path: Path, name: str) -> None:
    text = b"a\tb\n1\tx,y\n"
    assert rows_of(tmp_path / name, gzip.compress(text) if name.endswith("gz") else text) == [{"a": 1, "b": "x,y"}]


def test_an_archive_of_one_file_is_read_and_of_more_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("r.csv", "a\n1\n")
    assert read_file(path, "csv") == [{"a": 1}]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("s.csv", "a\n2\n")
    with pytest.raises(ConfigError, match=r"holds 2 files \(r.csv, s.csv\); expected one"):
        read_file(path, "csv")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("r.csv.gz", gzip.compress(b"a\n1\n" * 500)[:30], "can't be unpacked: .*; is it whole"),
        ("r.csv.gz", b"a\n1\n", "can't be unpacked: Not a gzipped file"),
        ("r.csv.xz", b"a\n1\n", "can't be unpacked"),
        ("r.csv.zip", b"a\n1\n", "can't be unpacked: File is not a zip file"),
        ("r.csv", "a\né\n".encode("latin-1"), r"r.csv is not UTF-8 text: byte 2 is 0xe9; save it as UTF-8"),
        ("r.csv", "a\n1\n".encode("utf-16"), "r.csv is not UTF-8 text: looks like UTF-16; save it as UTF-8"),
    ],
)
def test_what_can_not_be_unpacked_or_read_is_one_message(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows_of(tmp_path / name, data)
    if name == "r.csv":
        (fault,) = checked(tmp_path, data_name="csv", data_files=name)
        assert fault.path == "load_dataset_config.data_files"
        assert "is not UTF-8 text" in fault.found


def test_packed_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parquet files are packed by themselves; unpack it, and name r.parquet"):
        rows_of(tmp_path / "r.parquet.gz", gzip.compress(b"x"), "parquet")


# What a config says of files


@pytest.mark.parametrize("name", ["audiofolder", "webdataset", "npz", "hdf5"])
def test_formats_that_are_not_read_are_told_before_work(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is no format that is read here; expected arrow, csv"):
        parsed(data_name=name, data_dir="x")


def test_a_file_whose_name_tells_no_format_is_told_before_work(tmp_path: Path) -> None:
    (tmp_path / "r.npz").write_bytes(b"x")
    (fault,) = checked(tmp_path, data_files="r.npz")
    assert "r.npz: its name tells no format" in fault.found


@pytest.mark.parametrize("delimiter", ["||", "\\t", ""])
def test_a_delimiter_is_one_character(delimiter: str) -> None:
    with pytest.raises(ValidationError, match="expected one character"):
        parsed(data_name="csv", data_files="r.csv", delimiter=delimiter)


def test_a_path_that_is_not_there_is_no_name_on_the_hub(tmp_path: Path) -> None:
    for name in ("./absent", "~/absent of drupe", "data/of/mine", "my data"):
        (fault,) = checked(tmp_path, data_name=name)
        assert (fault.kind, fault.path) == ("needs", "load_dataset_config"), name
        assert "does not exist" in fault.found


def test_options_of_the_hub_beside_files_are_told() -> None:
    from drupe.plugins.data.container import HuggingfaceDataConfig

    told: list[str] = []
    config = {"data_name": "csv", "data_files": "r.csv", "subset": "a", "streaming": True, "field": "rows"}
    HuggingfaceDataConfig.model_validate(config, context={"notices": told})
    assert [notice.split(" has no effect: ")[0] for notice in told] == ["streaming", "subset", "field"]


def test_parts_of_a_split_are_those_of_datasets(load: Load, tmp_path: Path) -> None:
    import datasets

    path = write_rows(tmp_path / "r.jsonl", [{"text": f"t{number}"} for number in range(25)])
    for split in ("train[:10%]", "train[50%:]", "train[5:20]", "train[-3:]", "train[:200]", "train[:30%]+train[-1:]"):
        theirs = datasets.load_dataset("json", data_files=str(path), split=split, cache_dir=tmp_path / "c")
        samples, _ = load({"data_files": "r.jsonl", "split": split, "strategy": "line-by-line"})
        assert [sample.inputs["text"] for sample in samples] == list(theirs["text"]), split


def test_a_part_of_a_split_that_holds_nothing_is_named(load: Load, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", [{"text": "a"}] * 3)
    with pytest.raises(ConfigError, match=r"split 'train\[:1%\]' of r.jsonl holds no row"):
        load({"data_files": "r.jsonl", "split": "train[:1%]", "strategy": "line-by-line"})


def test_wishes_for_batches_that_nothing_follows_are_told() -> None:
    from drupe.plugins.data.container import HuggingfaceDataConfig

    def told(**config: Any) -> list[str]:
        notices: list[str] = []
        HuggingfaceDataConfig.model_validate({"data_files": "r.csv", **config}, context={"notices": notices})
        return [notice.split(" has no effect: ")[0] for notice in notices]

    wishes = {"batch_size": 8, "shuffle": True, "drop_last": True, "num_workers": 2}
    assert told(dataloader_config=wishes) == [f"dataloader_config.{name}" for name in wishes]
    assert told(dataloader_config={"batch_size": 1, "shuffle": False, "drop_last": False, "num_workers": 0}) == []
    own = {"user_script": "s.py", "dataloader_config": {"type": "mine", "batch_size": 8}}
    assert told(**own) == []


@pytest.mark.parametrize("files", [[], "", {}, {"train": None}, {"train": []}, ["a.csv", ""]])
def test_data_files_name_a_file(files: Any) -> None:
    with pytest.raises(ValidationError, match="expected a file or more, or a mapping of split to such"):
        parsed(data_files=files)


@pytest.mark.parametrize("columns", [[], ["a", "b", "c"]])
def test_a_text_or_two_are_classified(columns: list[str]) -> None:
    with pytest.raises(ValidationError, match=f"{len(columns)} columns; expected one text, or two"):
        parsed(data_files="r.csv", input_cols=columns)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"a": "x"}, {"text_template": "{a:d}"}, r"text_template: \{a:d\} does not fit 'x': Unknown format code"),
        ({"text": ["a", "b"]}, {"strategy": "line-by-line"}, r"text_cols: text holds \['a', 'b'\]; expected a text"),
        ({"text": ["a"], "label": 1}, {"input_cols": "text"}, "row 0: expected a text, found .* is_split_into_words"),
        ({"messages": "hi"}, {"chat_template": True}, "row 0: messages must be a list of messages"),
        ({"messages": TALK}, {"chat_template": "{% if %}"}, "chat_template on row 0: TemplateSyntaxError"),
        ({"messages": TALK}, {"chat_template": "{{ raise_exception('no') }}"}, "chat_template on row 0: .*: no"),
        ({"messages": TALK[1:]}, {"chat_template": True}, "1 no question: the answer stands alone"),
    ],
)
def test_rows_that_give_no_text_are_told(
    load: Load, tmp_path: Path, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    write_rows(tmp_path / "r.jsonl", [row])
    with pytest.raises(ConfigError, match=message):
        load({"data_files": "r.jsonl", "pre_process_data_config": options})


def test_a_url_that_nothing_fetches_is_told_before_work(tmp_path: Path) -> None:
    (fault,) = checked(tmp_path, data_files="foo://bucket/r.csv")
    assert fault.path == "load_dataset_config.data_files"
    assert "foo://" in fault.found


def test_what_a_storage_raises_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Load) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    class Trouble(Exception):
        """What a storage's library raises, of no kind that Python knows."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise Trouble("no credentials")

    monkeypatch.setattr(MemoryFileSystem, "info", refused)
    with pytest.raises(HostError, match=r"memory://bucket/r.csv can't be (read|downloaded): no credentials"):
        load({"data_files": "memory://bucket/r.csv", "strategy": "line-by-line"})

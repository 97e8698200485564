"""Reading rows from files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from drupe.core.errors import ConfigError
from drupe.plugins.data.rows import columns_of, first_columns, format_of, read_file

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "y,z"}]


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("r.jsonl", "json", '{"a": 1, "b": "x"}\n\n{"a": 2, "b": "y,z"}\n'),
        ("r.json", "json", '[{"a": 1, "b": "x"},\n {"a": 2, "b": "y,z"}]'),
        ("r.json", "json", '{\n "version": "1", "rows": [{"a": 1, "b": "x"}, {"a": 2, "b": "y,z"}]}'),
        ("r.json", "json", '{"a": [1, 2],\n "b": ["x", "y,z"]}'),
        ("r.csv", "csv", 'a,b\n1,x\n2,"y,z"\n'),
        ("r.csv", "csv", '\ufeffa,b\r\n1,x\r\n2,"y,z"\r\n'),
        ("r.tsv", "csv", "a\tb\n1\tx\n2\ty,z\n"),
    ],
)
def test_the_forms_of_text_files(name: str, kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert format_of(path) == kind
    assert read_file(path, kind) == ROWS
    assert first_columns(path, kind) == ["a", "b"]


def test_tables(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    found = read_file(tmp_path / "r.parquet", "parquet")
    assert list(found) == ROWS and found[1] == found[-1] == ROWS[1]
    assert [list(part) for part in (found[:1], found[1:], found[::-1], found[5:])] == [
        ROWS[:1],
        ROWS[1:],
        ROWS[::-1],
        [],
    ]
    with pyarrow.OSFile(str(tmp_path / "r.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert list(read_file(tmp_path / "r.arrow", "arrow")) == ROWS
    (tmp_path / "broken.parquet").write_text("no")
    with pytest.raises(ConfigError, match=r"broken\.parquet is no parquet file"):
        read_file(tmp_path / "broken.parquet", "parquet")


def test_compressed_and_plain_text(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as handle:
        handle.write('{"a": 1, "b": "x"}\n{"a": 2, "b": "y,z"}\n')
    assert format_of(tmp_path / "r.jsonl.gz") == "json"
    assert read_file(tmp_path / "r.jsonl.gz", "json") == ROWS
    (tmp_path / "t.txt").write_text("one\n\ntwo")
    assert read_file(tmp_path / "t.txt", "text") == [{"text": "one"}, {"text": ""}, {"text": "two"}]


def test_a_field_names_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"train": [{"a": 1}], "test": [{"a": 2}]}')
    assert read_file(path, "json", field="test") == [{"a": 2}]
    with pytest.raises(ConfigError, match=r"no field 'dev'; its keys are train, test"):
        read_file(path, "json", field="dev")


def test_columns_of_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("i,f,s,e\n1,1.5,1x,\n2,2,y,3\n")
    assert read_file(path, "csv") == [{"i": 1, "f": 1.5, "s": "1x", "e": None}, {"i": 2, "f": 2.0, "s": "y", "e": 3}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.jsonl", '{"a": 1}\n{"a": 2\n', r"line 2, column 8: .*found '\{\"a\": 2'"),
        ("r.jsonl", '{"a": 1}\n[1, 2]\n', r"line 2: '\[1, 2\]'; expected a JSON object with a key per column"),
        ("r.json", '[{"a": 1},\n {"a": }]', r"line 2, column 8"),
        ("r.json", "[1, 2]", r"row 1: 1; expected an object"),
        ("r.json", "nonsense", r"line 1, column 1.*found 'nonsense'"),
        ("r.csv", "a,b\n1,2\n3\n", r"line 3: 1 values; expected 2 \(a, b\)"),
        ("r.csv", "a,a\n1,2\n", r"the column 'a' is there twice"),
        ("r.csv", 'a,b\n1,"x\n', r"line 2"),
    ],
)
def test_malformed_files_are_told_by_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    kind = format_of(path)
    assert kind is not None
    with pytest.raises(ConfigError, match=message) as caught:
        read_file(path, kind)
    assert name in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="not UTF-8 text: byte 7 is 0xff"):
        read_file(tmp_path / "r.jsonl", "json")


def test_columns_of_uneven_rows() -> None:
    assert columns_of([{"a": 1}, {"b": 2, "a": 3}]) == ["a", "b"]

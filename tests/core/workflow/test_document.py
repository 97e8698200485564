"""Parsing: JSON and YAML to the same data, and where a malformed file is malformed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.core.errors import ConfigError
from drupe.core.workflow.document import parse_document, read_document

YAML = Path("w.yaml")
JSON = Path("w.json")

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcé: #-'", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abc_", min_size=1), values, max_size=5))
def test_any_json_document_is_read_as_json_reads_it(data: dict[str, Any]) -> None:
    assert parse_document(json.dumps(data), JSON) == data


@given(st.dictionaries(st.text("abc_", min_size=1), values, max_size=5))
def test_yaml_reads_what_a_yaml_writer_that_quotes_texts_wrote(data: dict[str, Any]) -> None:
    import yaml

    class Quoting(yaml.SafeDumper):
        pass

    Quoting.add_representer(str, lambda d, s: d.represent_scalar("tag:yaml.org,2002:str", s, style='"'))
    assert parse_document(yaml.dump(data, Dumper=Quoting, allow_unicode=True), YAML) == data


def test_yaml_means_what_json_users_expect() -> None:
    text = "a: 1e-5\nb: no\nc: 2024-01-01\nd: 1:30\ne: 0x10\nf: true\ng: ~\nh: 010\ni: {0: batch}\nj: .5\n"
    assert parse_document(text, YAML) == {
        "a": 1e-5,
        "b": "no",
        "c": "2024-01-01",
        "d": "1:30",
        "e": 16,
        "f": True,
        "g": None,
        "h": "010",
        "i": {"0": "batch"},
        "j": 0.5,
    }


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ('{"a": 1\n "b": 2}', JSON, "w.json, line 2, column 2: malformed JSON"),
        ('{"a": 1,\n}', JSON, "is there a comma before the closing bracket?"),
        ('{"a": 1} // x', JSON, "line 1, column 10"),
        ("{'a': 1}", JSON, "JSON texts stand in double quotes"),
        ('{"a": NaN}', JSON, "w.json: NaN; expected a number that JSON knows"),
        ("", JSON, "the file is empty"),
        ("[1]", JSON, "the file holds a list; expected a mapping"),
        ('{"a": {"b": 1, "b": 2}}', JSON, "a.b: the key is given twice"),
        ("a: [b\n", YAML, "w.yaml, line 2, column 1: malformed YAML"),
        ("a:\n\t- b\n", YAML, "YAML is indented with spaces, not tabs"),
        ("a: b: c\n", YAML, "line 1, column 5"),
        ("a: 1\nb: 2\na: 3\n", YAML, "w.yaml, line 3, column 1: the key 'a' is given twice"),
        ("a: !!python/object:os.system {}\n", YAML, "line 1, column 4"),
        ("a: !!timestamp 2024-01-01\n", YAML, "is a date"),
        ("a: &x\n  b: *x\n", YAML, "line 1, column 4"),
        ("? [1]\n: 2\n", YAML, "line 1, column 3: a key that is no text"),
    ],
)
def test_what_is_malformed_is_said_with_its_place(text: str, path: Path, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_document(text, path)
    assert expected in str(raised.value)


def test_nested_aliases_do_not_unfold_without_end() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="unfolds to more than"):
        parse_document("\n".join(lines), YAML)


def test_a_file_that_nests_too_deeply_is_refused() -> None:
    with pytest.raises(ConfigError, match="nests too deeply"):
        parse_document("[" * 100_000, JSON)


def test_an_absent_file_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "workflow.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"workflw.yaml: no such file.*did you mean .*workflow.yaml"):
        read_document(tmp_path / "workflw.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="byte 3 is not UTF-8"):
        read_document(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_document(path) == {"a": 1}

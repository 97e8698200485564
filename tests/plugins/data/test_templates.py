"""Templates and content keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.core.errors import ConfigError
from drupe.plugins.data.templates import Template, content_key, text_of


def test_columns_are_filled_in() -> None:
    template = Template("Q: {question} {{really}}\nA: {answers[text][0]} {a.b:.2f}", "text_template")
    assert template.fields == ["question", "answers", "a.b"]
    row = {"question": "why?", "answers": {"text": ["because"]}, "a.b": 1.234}
    assert template.fill(row) == "Q: why? {really}\nA: because 1.23"
    template.check(list(row))


def test_an_empty_column_gives_no_text() -> None:
    assert Template("x {a}", "t").fill({"a": None}) is None
    assert Template("x {a[b]}", "t").fill({"a": None}) is None


def test_absent_columns_are_named_with_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"prompt_template names the column 'phrse'; the data has: phrase, tone"):
        Template("{phrse}", "prompt_template").check(["phrase", "tone"])


@pytest.mark.parametrize("text", ["{", "{}", "a } b", "{a!r}"])
def test_malformed_templates(text: str) -> None:
    with pytest.raises(ConfigError, match="t '"):
        Template(text, "t")


def test_attributes_are_out_of_reach() -> None:
    template = Template("{a.__class__}", "t")
    assert template.missing(["a"]) == ["a.__class__"]
    assert template.fill({"a": "x"}) is None


@given(st.text(), st.text(alphabet=" \t\n", max_size=3))
def test_white_space_makes_no_difference(text: str, space: str) -> None:
    assert content_key(text) == content_key(f"{space}{text}{space}")


# Of letters whose upper case is one letter that leads back; the Turkish dotless i is not.
@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_case_makes_no_difference(text: str) -> None:
    assert content_key(text.lower()) == content_key(text.upper())


def test_content_keys() -> None:
    assert content_key("Ｆｉｒｅ!  now") == content_key("fire! NOW")
    assert content_key("fire") != content_key("water")


def test_text_of_columns() -> None:
    assert text_of({"a": "x", "b": None, "c": 3}, ["a", "b", "c"]) == "x 3"
    assert text_of({"a": None}, ["a"]) is None

"""What all runtimes share in generating text."""

from __future__ import annotations

import pytest

from drupe.core.runtimes import GenerateOptions


@pytest.mark.parametrize(
    ("stop", "text"),
    [((), "one. two\nthree"), (("\n", "."), "one"), (("", "\n"), "one. two"), (("",), "one. two\nthree")],
)
def test_text_is_cut_at_the_first_stop_and_an_empty_one_is_none(stop: tuple[str, ...], text: str) -> None:
    assert GenerateOptions(stop=stop).cut("one. two\nthree") == text

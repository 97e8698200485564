"""The worked example in Drupe's documentation shows this package's code as it is."""

from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT.parents[1] / "docs" / "backends.md"
SOURCE = ROOT / "src" / "drupe_acme_npu"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="outside of Drupe's repository")


def blocks(language: str) -> list[str]:
    return (
        re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
        if PAGE.is_file()
        else []
    )


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0])
def test_python_blocks_stand_in_the_source_word_for_word(block: str) -> None:
    title, _, code = block.partition("\n")
    source = (SOURCE / title.removeprefix("# ")).read_text(encoding="utf-8")
    indented = textwrap.indent(code.rstrip("\n"), "    ", lambda line: bool(line.strip()))
    assert code.rstrip("\n") in source or indented in source


def test_every_piece_is_shown() -> None:
    assert len(blocks("python")) >= 7


def test_the_package_declares_what_the_page_says() -> None:
    (shown,) = (tomllib.loads(block) for block in blocks("toml"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert shown["project"]["dependencies"] == project["dependencies"]
    assert shown["project"]["scripts"] == project["scripts"]
    assert shown["project"]["entry-points"] == project["entry-points"]


def test_the_workflow_on_the_page_is_the_example_in_short() -> None:
    import yaml

    (shown,) = (yaml.safe_load(block) for block in blocks("yaml"))
    example = yaml.safe_load((ROOT / "examples" / "mlp.yaml").read_text(encoding="utf-8"))
    for key in ("input_model", "systems", "passes", "host", "target", "evaluator"):
        assert shown[key] == example[key]

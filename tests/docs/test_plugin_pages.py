"""Every code block of the pages about plugins runs, and what they count and list is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drupe.core import hookspecs, specs
from tests.support.pages import run_page

REPOSITORY = Path(__file__).parents[2]
PAGES = REPOSITORY / "docs" / "plugins"
TEMPLATE = REPOSITORY / "contrib" / "plugin-template"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: str(page.stem))
def test_every_block_runs(page: Path, tmp_path: Path) -> None:
    assert run_page(page, tmp_path) > 0


def lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


def test_the_lines_that_publishing_takes_are_counted_right() -> None:
    text = (PAGES / "publish.md").read_text(encoding="utf-8")
    source = TEMPLATE / "src" / "drupe_example"
    assert f"| the pass | {lines(source / 'clip_weights.py')} lines |" in text
    assert f"{lines(source / 'plugin.py')} lines in `plugin.py`, 2 in `pyproject.toml`" in text
    test = (TEMPLATE / "tests" / "test_clip_weights.py").read_text(encoding="utf-8")
    contract = re.search(r"class Test.*?return [^\n]*\n", test, re.DOTALL)
    assert contract is not None
    assert f"| {sum(bool(line.strip()) for line in contract[0].splitlines())} lines |" in text


def test_every_hook_and_spec_is_listed() -> None:
    text = (PAGES / "hooks.md").read_text(encoding="utf-8")
    hooks = [name for name, function in vars(hookspecs).items() if hasattr(function, "drupe_spec")]
    assert [name for name in hooks if f"| `{name}" not in text] == []
    assert [kind.__name__ for kind in specs.SPEC_TYPES.values() if f"`{kind.__name__}`" not in text] == []


def test_every_contract_is_listed_with_its_fixtures() -> None:
    import drupe.testing

    text = (PAGES / "contracts.md").read_text(encoding="utf-8")
    public = [name for name in drupe.testing.__all__ if name.endswith("Contract")]
    shown = [name for name in public if name not in ("Contract", "ConfigContract")]
    assert [name for name in shown if f"| `{name}` |" not in text] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

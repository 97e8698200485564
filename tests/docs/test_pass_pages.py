"""The pages about passes are what the passes and the catalogue say today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "passes"


def test_the_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_pass_pages", FOLDER / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = module.pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    stale = sorted(name for name in {*pages, *there} if pages.get(name) != there.get(name))
    assert stale == [], "run: python docs/passes/generate.py"

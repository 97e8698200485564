"""Every code block of every page runs or is checked here, or says why not.

Pages about plugins are run as they stand (test_plugin_pages). Elsewhere Python is executed, a page in one namespace;
YAML and JSON are read as the workflow that they are a part of, with the installed plugins; a block of commands must
name commands that exist. What a line `<!-- not run: why -->` or `<!-- command: name -->` stands above is left alone; a
named command is taken from the page by what checks a change or a release.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from drupe.core.cli import main
from drupe.core.registry import Registry
from drupe.core.workflow.read import examine

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(?:<!-- (not run|command): ([^\n]+?) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = ("tests", "example")
"""Commands that are taken from the page by name: the first by every check of a change."""
# Pages whose blocks another test holds, word for word or by running them.
ELSEWHERE = {
    "docs/backends.md": "contrib/drupe-acme-npu/tests/test_docs.py",
    "docs/metrics.md": "tests/plugins/metrics/test_docs.py",
    "docs/plugins": "tests/docs/test_plugin_pages.py",
}


@dataclass(frozen=True)
class Block:
    """A fenced block. mark, reason: of the comment above it."""

    page: str
    line: int
    mark: str
    reason: str
    language: str
    code: str


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    for found in BLOCK.finditer(text):
        line = text[: found.start(4)].count("\n")
        yield Block(name, line, found[1] or "", found[2] or "", found[3], found[4])


def held_elsewhere(page: str) -> bool:
    return any(page == name or page.startswith(f"{name}/") for name in ELSEWHERE)


PAGES = [path.relative_to(ROOT).as_posix() for path in pages()]


def test_what_holds_the_other_pages_is_there() -> None:
    for page, test in ELSEWHERE.items():
        assert (ROOT / page).exists() and (ROOT / test).is_file()
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_missed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(list(blocks(ROOT / page)))


@pytest.mark.parametrize("page", [page for page in PAGES if not held_elsewhere(page)])
def test_every_block_runs_or_says_why_not(page: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(ROOT / page):
        where = f"{page}:{block.line}"
        if block.mark == "not run":
            continue
        if block.mark == "command":
            assert block.reason in COMMANDS, where
            continue
        match block.language:
            case "python":
                exec(compile("\n" * block.line + block.code, where, "exec"), namespace)
            case "yaml":
                check_workflow(yaml.safe_load(block.code), where, tmp_path)
            case "json":
                text = block.code if block.code.lstrip().startswith("{") else f"{{{block.code}}}"
                check_workflow(json.loads(text), where, tmp_path)
            case "":
                for command in re.findall(r"^drupe ((?:[a-z-]+ ?)+)", block.code, re.MULTILINE):
                    assert main([*command.split(), "--help"]) == 0, f"{where}: drupe {command}"
            case other:
                raise AssertionError(
                    f"{where}: nothing runs blocks of {other}; say why above it: <!-- not run: why -->"
                )


def check_workflow(part: Mapping[str, Any], where: str, folder: Path) -> None:
    """Read a workflow of which only a part is shown; what the part names and does not show is filled in."""
    document: dict[str, Any] = {"input_model": {"type": "HfModel", "model_path": "a/model"}, "passes": {}, **part}
    if not document["passes"]:
        document["passes"] = {"build": {"type": "ModelBuilder"}}
    shown = {entry["name"] for entry in document.get("data_configs", ())}
    named = set(re.findall(r'"(?:\w*data_config)": "(\w+)"', json.dumps(document)))
    load = {"data_name": "json", "data_files": "rows.jsonl"}
    missing = [{"name": name, "load_dataset_config": load} for name in sorted(named - shown)]
    if missing:
        document["data_configs"] = [*document.get("data_configs", ()), *missing]
    path = folder / "workflow.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    found = examine(path, Registry.discover())
    # Files that a page only names, and consent, are the reader's to give.
    assert [str(fault) for fault in found.faults if fault.kind != "needs"] == [], where

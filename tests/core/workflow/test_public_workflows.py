"""Eighty public workflow files of all generations: none has a fault, none crashes, none takes a second.

The files lie beside this repository, in ../shared/data/olive-workflows. public_workflows.json holds what reading each
of them finds with Drupe's own plugins; after a change that is meant, write it anew with
`python -m tests.core.workflow.test_public_workflows`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drupe.core.catalogue import get_catalogue
from drupe.core.errors import ConfigError
from drupe.core.plan import build_plan
from drupe.core.registry import Registry, get_registry
from drupe.core.workflow.read import Examination, examine
from drupe.core.workflow.reading import FILL_IN

TABLE = Path(__file__).with_name("public_workflows.json")
FOLDER = Path(__file__).parents[4] / "shared" / "data" / "olive-workflows"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.json"))

pytestmark = pytest.mark.skipif(not FILES, reason=f"the public workflow files are not at {FOLDER}")


def own_registry() -> Registry:
    """The plugins of this distribution alone, so that the counts are the same wherever others are installed."""
    registry = Registry()
    for entry in get_registry().entries:
        if entry.plugin.distribution == "drupe":
            registry.add(entry.hook, [entry.spec], entry.plugin)
    return registry


def row(found: Examination) -> dict[str, Any]:
    missing = Counter(fault.hint.removeprefix("known as: ") for fault in found.of_kind("missing"))
    return {
        "faults": len(found.of_kind("fault")),
        "missing": dict(sorted(missing.items())),
        "needs": len(found.of_kind("needs")),
        "notices": len(found.notices),
    }


CHOICES = ("2024/phi2__phi2_optimize_template.json",)
"""Passes among which a script picks: in a row they export one model twice, and fit in no framework."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return own_registry()


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("name", FILES)
def test_what_reading_a_file_finds_is_as_the_table_says(name: str, registry: Registry, table: dict[str, Any]) -> None:
    started = time.perf_counter()
    found = examine(FOLDER / name, registry)
    seconds = time.perf_counter() - started
    assert [str(fault) for fault in found.of_kind("fault")] == []
    assert row(found) == table[name], [str(fault) for fault in found.faults]
    assert seconds < 5.0


def test_the_table_holds_every_file_and_no_other(table: dict[str, Any]) -> None:
    assert sorted(table) == FILES


def test_files_of_which_nothing_is_missing_plan(registry: Registry) -> None:
    planned = 0
    for name in FILES:
        found = examine(FOLDER / name, registry)
        if found.workflow is None or found.of_kind("missing") or any(f.hint == FILL_IN for f in found.faults):
            continue
        try:
            build_plan(found.workflow, registry)
        except ConfigError as error:
            # A device that no runtime of ours can measure on is missing, as a pass would be.
            wanted = "fault" if name in CHOICES else "missing"
            assert {fault.kind for fault in error.faults} == {wanted}, (name, error)
        planned += 1
    assert planned > 0


def test_what_is_missing_is_nothing_that_is_built_in(registry: Registry) -> None:
    for name in FILES:
        for fault in examine(FOLDER / name, registry).of_kind("missing"):
            assert fault.hint.startswith("known as: ") and "built-in" not in fault.hint, (name, fault)


def test_every_pass_of_the_files_is_in_the_catalogue() -> None:
    catalogue = get_catalogue()
    for name in FILES:
        document = json.loads((FOLDER / name).read_text(encoding="utf-8"))
        for entry in document["passes"].values():
            for alternative in entry if isinstance(entry, list) else [entry]:
                today = catalogue.current("passes", alternative["type"]) or alternative["type"]
                assert catalogue.provider("passes", today) is not None, (name, alternative["type"])


if __name__ == "__main__":
    rows = {name: row(examine(FOLDER / name, own_registry())) for name in FILES}
    lines = [f"  {json.dumps(name)}: {json.dumps(data)}" for name, data in rows.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

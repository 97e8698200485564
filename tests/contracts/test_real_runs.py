"""Every built-in pass has a test that runs it on a real model: the mark `real_run` says which, and is held to it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drupe.core.registry import Registry

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mark:
    """A mark `real_run` in a file. names: the passes; fault: why it does not count, or nothing."""

    place: str
    names: tuple[str, ...]
    fault: str = ""


def is_mark(node: ast.AST, *names: str) -> bool:
    """Whether it is pytest.mark.NAME, called or not."""
    target = node.func if isinstance(node, ast.Call) else node
    return isinstance(target, ast.Attribute) and target.attr in names and ast.unparse(target.value) == "pytest.mark"


def marks_in(text: str, name: str) -> Iterator[Mark]:
    """Find the marks of a file of tests; those that pytest would not put on a test that always runs have a fault."""
    tree = ast.parse(text)
    counted: dict[ast.AST, str] = {}
    for owner in ast.walk(tree):
        if isinstance(owner, ast.FunctionDef | ast.ClassDef) and owner.name.lower().startswith("test"):
            inside = [node for decorator in owner.decorator_list for node in ast.walk(decorator)]
            left_out = any(is_mark(node, "skip", "skipif", "xfail") for node in inside)
            fault = f"{owner.name} may be skipped or fail" if left_out else ""
            counted |= {node: fault for node in inside if isinstance(node, ast.Call) and is_mark(node, "real_run")}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and is_mark(node, "real_run")):
            continue
        names = tuple(str(given.value) for given in node.args if isinstance(given, ast.Constant))
        fault = counted.get(node, "it is no decorator of a test, nor in one")
        if len(names) != len(node.args) or node.keywords or not names:
            fault = "it takes names of passes, written out"
        yield Mark(f"{name}:{node.lineno}", names, fault)


def all_marks() -> list[Mark]:
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.real_run(" in text and path != Path(__file__):
            found += marks_in(text, path.relative_to(TESTS.parent).as_posix())
    return found


def built_in() -> set[str]:
    registry = Registry.discover({"autoload": False})
    return {
        entry.spec.name
        for entry in registry.entries
        if entry.hook == "drupe_passes" and entry.plugin.distribution == "drupe"
    }


def test_every_built_in_pass_has_a_run_on_a_real_model() -> None:
    marks = all_marks()
    assert [f"{mark.place}: {mark.fault}" for mark in marks if mark.fault] == []
    marked = {name for mark in marks for name in mark.names}
    known = built_in()
    assert {"LoRA", "ModelBuilder", "OnnxConversion"} <= known
    assert sorted(marked - known) == [], "marks of passes that are not there"
    missing = sorted(known - marked)
    if missing:
        pytest.fail(f"no test runs these on a real model: {', '.join(missing)}; see docs/testing.md", pytrace=False)


@pytest.mark.parametrize(
    ("text", "names", "fault"),
    [
        ('@pytest.mark.real_run("A", "B")\ndef test_a(): pass', ("A", "B"), ""),
        ('@pytest.mark.real_run("A")\nclass TestA: pass', ("A",), ""),
        ('@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.real_run("A"))])\ndef test_a(n): pass',
         ("A",), ""),
        ('@pytest.mark.real_run("A")\ndef helper(): pass', ("A",), "no decorator of a test"),
        ('pytestmark = pytest.mark.real_run("A")', ("A",), "no decorator of a test"),
        ('@pytest.mark.real_run(NAME)\ndef test_a(): pass', (), "written out"),
        ('@pytest.mark.real_run()\ndef test_a(): pass', (), "written out"),
        ('@pytest.mark.skipif(True)\n@pytest.mark.real_run("A")\ndef test_a(): pass', ("A",), "may be skipped"),
    ],
)  # fmt: skip
def test_what_counts_as_a_mark(text: str, names: tuple[str, ...], fault: str) -> None:
    (mark,) = marks_in(text, "test_x.py")
    assert mark.names == names
    assert fault in mark.fault and bool(fault) == bool(mark.fault)


CONFTEST = """
import pytest
from drupe.testing import tiny_onnx_mlp
from tests.support import real_runs

def pytest_configure(config):
    config.addinivalue_line("markers", "real_run(*passes): x")
    config.pluginmanager.register(real_runs.plugin())

@pytest.fixture(scope="session")
def minilm_dir(tmp_path_factory):
    # Its place counts as a source; what lies there is small here.
    return tiny_onnx_mlp(tmp_path_factory.mktemp("source")).folder
"""
CASES = """
import pytest
from drupe.core.model import Model
from drupe.testing import tiny_onnx_mlp
from tests.plugins.onnx.graphs import run_pass

@pytest.fixture(scope="module")
def graph(minilm_dir, tmp_path_factory):
    source = Model.from_dir("onnx", minilm_dir, {"onnx_file": "model.onnx"})
    return run_pass("OnnxOpVersionConversion", source, tmp_path_factory.mktemp("job"), target_opset=21)

def test_unmarked(graph): pass

@pytest.mark.real_run("OnnxOpVersionConversion")
def test_in_a_fixture(graph): pass

@pytest.mark.real_run("OnnxPeepholeOptimizer")
def test_after_another_pass(graph, tmp_path): run_pass("OnnxPeepholeOptimizer", graph, tmp_path)

@pytest.mark.real_run("OnnxPeepholeOptimizer")
def test_of_another_test(graph): pass

@pytest.mark.real_run("OnnxOpVersionConversion")
def test_without_the_fixture(minilm_dir): pass

@pytest.mark.real_run("OnnxPeepholeOptimizer")
def test_made_up(graph, tmp_path): run_pass("OnnxPeepholeOptimizer", tiny_onnx_mlp(tmp_path / "m", seed=7), tmp_path)

@pytest.mark.real_run("OnnxPeepholeOptimizer")
def test_that_fails_in_the_pass(graph, tmp_path):
    with pytest.raises(Exception, match="takes hf models"):
        run_pass("Rtn", graph, tmp_path)

@pytest.mark.real_run("OnnxOpVersionConversion")
def test_skipped(graph): pytest.skip("why")

@pytest.fixture
def there(): pytest.skip("not there")

@pytest.mark.real_run("OnnxOpVersionConversion")
def test_skipped_by_a_fixture(graph, there): pass
"""


@pytest.mark.slow
def test_a_mark_on_a_test_that_does_not_run_the_pass_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_cases.py").write_text(CASES)
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    environment = {**os.environ, "CI": "1", "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS.parent}"}
    done = subprocess.run(
        [*command, "test_cases.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    told = {line.split("::")[1].split()[0]: line for line in done.stdout.splitlines() if "test_cases.py::" in line}
    outcomes = {name: line.split()[0] for name, line in told.items()}
    assert outcomes == {
        "test_unmarked": "PASSED",
        "test_in_a_fixture": "PASSED",
        "test_after_another_pass": "PASSED",
        "test_of_another_test": "FAILED",
        "test_without_the_fixture": "FAILED",
        "test_made_up": "FAILED",
        "test_that_fails_in_the_pass": "FAILED",
        "test_skipped": "FAILED",
        "test_skipped_by_a_fixture": "ERROR",
    }, done.stdout + done.stderr
    assert "OnnxPeepholeOptimizer, which did not run; these did: OnnxOpVersionConversion" in done.stdout
    assert "OnnxPeepholeOptimizer ran, but on no real model" in done.stdout

"""Importing core or any plugin module imports no framework; pydantic stays out of `drupe --help`."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "onnx", "onnxruntime", "onnxruntime_genai", "optuna", "datasets", "scipy")


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def own_plugin_modules() -> list[str]:
    return sorted(
        point.value for point in importlib.metadata.entry_points(group="drupe") if point.value.startswith("drupe.")
    )


@pytest.mark.parametrize("module", own_plugin_modules())
def test_a_plugin_module_imports_no_framework(module: str) -> None:
    loaded = imported_by(f"import {module}")
    assert not loaded & {*HEAVY, "pydantic", "numpy"}


def test_core_imports_no_framework() -> None:
    modules = ("driver", "engine", "plan", "registry", "store", "worker", "workflow.read", "cli.run", "cli.validate")
    loaded = imported_by("import " + ", ".join(f"drupe.core.{name}" for name in modules))
    assert not loaded & set(HEAVY)


def test_help_imports_neither_pydantic_nor_rich() -> None:
    statement = (
        "import drupe.core.cli as cli\ntry:\n    sys.argv = ['drupe', '--help']; cli.main()\nexcept SystemExit: pass"
    )
    assert not imported_by(statement) & {*HEAVY, "pydantic", "rich", "numpy", "yaml"}

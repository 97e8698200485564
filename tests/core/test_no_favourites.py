"""The door that the built-in plugins use is the only one: no Python file of Drupe knows a package of contrib/."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "plugins", "search", "hosts", "src")
WORDS = ("openvino", "nncf", "acme")
# Words of others that a backend's name is part of: ONNX Runtime's names for one of its execution providers and for the
# distribution built with it, Olive's name of a framework, and a folder that hub repositories have.
OTHERS = {
    "core/olive_names.py": r'OPENVINO = "OpenVINO"',
    "core/requirements.py": r'^    "onnxruntime": \(.*"openvino"',
    "plugins/accelerators/plugin.py": r'"OpenVINOExecutionProvider"',
    "plugins/huggingface/files.py": r'^OTHER_FORMS = .*"openvino"',
}


def python_files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("word", WORDS)
def test_no_line_is_about_a_package_of_contrib(word: str) -> None:
    found = []
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            allowed = name in OTHERS and re.search(OTHERS[name], line)
            if word in line.lower() and not allowed:
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_the_words_cover_every_package() -> None:
    projects = [path for path in (ROOT / "contrib").glob("*/pyproject.toml") if path.parent.name != "plugin-template"]
    names = [tomllib.loads(path.read_text())["project"]["name"] for path in projects]
    assert len(names) >= 2
    assert [name for name in names if not any(word in name for word in WORDS)] == []

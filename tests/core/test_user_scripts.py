"""Users' scripts: what they may import, by which names their functions go, and what is said when they fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.core import olive_names
from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.user_scripts import call_loader, in_turn, user_function

SCRIPT = """
from olive.constants import Framework
from olive.data.component.dataset import BaseDataset
from olive.data.registry import Registry
from olive.model import PyTorchModelHandler


@Registry.register_dataset()
def load_codes(data_name):
    return data_name


@Registry.register_pre_process("Trimmed")
def trim(dataset, of: PyTorchModelHandler = None):
    return dataset[:1]


def rows():
    return BaseDataset([{"x": 1, "y": 2}, {"x": 3, "y": 4}], label_cols=["y"], max_samples=1)


def framework(data_dir, batchsize, *args, **kwargs):
    return data_dir, batchsize, kwargs.get("model_framework", Framework.PYTORCH) == Framework.ONNX, kwargs
"""


REGISTRY = "from olive.data.registry import Registry\n\n"


@pytest.fixture(autouse=True)
def no_olive() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "olive"]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, olive_names._Finder)]


def function(folder: Path, name: str, script: str = SCRIPT) -> Any:
    (folder / "s.py").write_text(script)
    context = JobContext(folder, folder, workflow_dir=folder, allow=frozenset({"user-scripts"}))
    return user_function("s.py", name, context)


def test_a_script_that_registers_its_functions_with_olive_needs_no_olive(tmp_path: Path) -> None:
    assert function(tmp_path, "load_codes")("codes") == "codes"
    assert function(tmp_path, "trimmed")([1, 2]) == [1]  # By the name it was registered by, in any case.
    assert list(in_turn(function(tmp_path, "rows")())) == [({"x": 1}, 2)]


def test_what_a_module_beside_the_script_registers_counts_as_well(tmp_path: Path) -> None:
    for folder, value in (("one", 1), ("other", 2)):
        (tmp_path / folder).mkdir()
        text = f"{REGISTRY}@Registry.register_dataset('Rows')\ndef f():\n    return {value}\n"
        (tmp_path / folder / f"parts_{folder}.py").write_text(text)
    assert function(tmp_path / "other", "rows", "import parts_other")() == 2
    assert function(tmp_path / "one", "ROWS", "import parts_one")() == 1
    (tmp_path / "third").mkdir()
    with pytest.raises(ConfigError, match="defines no rows"):
        function(tmp_path / "third", "rows", "x = 1")


def test_the_registry_of_an_olive_that_is_installed_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "olive" / "data"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "registry.py").write_text(
        "class Registry:\n"
        "    found = {'load_dataset': {}, 'pre_process_data': {}}\n"
        "    @classmethod\n"
        "    def register_pre_process(cls, name):\n"
        "        return lambda f: cls.found['pre_process_data'].setdefault(name.lower(), f)\n"
        "    @classmethod\n"
        "    def get(cls, place, name):\n"
        "        return cls.found[place][name]\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    script = (
        "from olive.data.registry import Registry\n\n@Registry.register_pre_process('Short')\ndef f():\n    return 3\n"
    )
    assert function(tmp_path, "short", script)() == 3


def test_a_loader_gets_folder_and_batch_size_by_place_and_the_framework(tmp_path: Path) -> None:
    loader = function(tmp_path, "framework")
    given = call_loader(loader, {"seed": 3}, data_dir="d", batch_size=4, framework="ONNX")
    assert given == ("d", 4, True, {"model_framework": "ONNX", "seed": 3})
    assert call_loader(loader, {}, data_dir="d", batch_size=4, framework="PyTorch")[2] is False
    assert call_loader(lambda batch_size: batch_size, {}, data_dir="d", batch_size=2, framework=None) == 2


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import olive.snpe", r"olive.snpe is a module of Olive, which is not installed; .*pip install olive-ai"),
        ("from olive.constants import Nothing", "can't be imported: cannot import name 'Nothing'"),
        ("x = 1\nraise OSError('no such model')", r"s.py, line 2 can't be imported: OSError: no such model"),
    ],
)
def test_a_script_that_fails_on_import_is_one_message(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        function(tmp_path, "f", script)


def test_an_installed_olive_is_used_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "olive"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "constants.py").write_text("Framework = 'its own'\n")
    monkeypatch.syspath_prepend(package.parent)
    assert function(tmp_path, "Framework", "from olive.constants import Framework") == "its own"
    with pytest.raises(ConfigError, match=r"No module named 'olive\.snpe'"):
        function(tmp_path, "f", "import olive.snpe")

"""A library of operators that can't be imported is one message, here and in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drupe.core.errors import EvaluationError
from drupe.plugins.onnx import ort_session
from drupe.plugins.onnx.extensions import register_extensions


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name that needs what is not there."""
    (tmp_path / "onnxruntime_extensions").mkdir()
    (tmp_path / "onnxruntime_extensions" / "__init__.py").write_text("import no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime_extensions", raising=False)
    return tmp_path


def test_a_library_that_is_installed_is_not_called_absent(broken: Path) -> None:
    message = r"installed and can not be imported \(No module named 'no_such_thing'\): pip install --force-reinstall"
    with pytest.raises(EvaluationError, match=message):
        register_extensions({"use_ort_extensions": True}, None)


def test_nor_in_an_environment_of_its_own(broken: Path) -> None:
    code = f"import sys; sys.path[:0] = [{str(broken)!r}, {str(Path(ort_session.__file__).parent)!r}]\n"
    code += "import ort_session\ntry: ort_session._with_extensions()\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs onnxruntime-extensions, which can't be imported there: No module named 'no_such_thing'" in done.stdout

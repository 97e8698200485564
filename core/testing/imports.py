"""Finds out what importing a module brings along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

from drupe.core.plugin_loading import HEAVY

__all__ = ["assert_light_import", "heavy_imports"]

_PROBE = """
import importlib, json, sys
heavy, modules = json.loads(sys.argv[1])
found = {}
class Watch:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in heavy and top not in found:
            frame = sys._getframe(1)
            while frame and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            found[top] = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"
        return None
sys.meta_path.insert(0, Watch())
for module in modules:
    importlib.import_module(module)
print("\\n" + json.dumps({name: where for name, where in found.items() if name in sys.modules}))
"""


def heavy_imports(*modules: str, heavy: Iterable[str] = HEAVY) -> Mapping[str, str]:
    """Import modules in a fresh interpreter and return {heavy library: "file:line" that imported it first}.

    Raises AssertionError with the traceback when a module can't be imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps([sorted(heavy), modules])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"importing {', '.join(modules)} failed:\n{done.stderr}"
    found: Mapping[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_light_import(*modules: str, heavy: Iterable[str] = HEAVY) -> None:
    """Assert that importing modules imports none of the heavy libraries; the message says which line does."""
    found = heavy_imports(*modules, heavy=heavy)
    told = "; ".join(f"{where} imports {name}" for name, where in found.items())
    assert not found, f"importing {', '.join(modules)} is not light: {told}; import inside the function that needs it"

"""Functions from a user's script, loaded after the user's consent."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.digests import file_digest
from drupe.core.errors import ConfigError

__all__ = ["user_function"]


def user_function(script: str | Path, name: str, context: JobContext, *, folder: str | None = None) -> Any:
    """Return what `name` is in a script.

    script, folder: relative to the workflow's folder; `folder` is searched for what the script imports, after the
    script's own. Raises ConfigError without consent, when the file or the name does not exist, or when the script can't
    be imported.
    """
    context.require_consent("user-scripts", f"running {name} of {script}")
    base = context.workflow_dir or Path()
    path = (base / script).expanduser()
    if not path.is_file():
        raise ConfigError(f"user_script: {path} does not exist; it should define {name}")
    search = [str(path.parent)]
    if folder is not None:
        search.insert(0, str((base / folder).expanduser()))
    found: Callable[..., Any] | None = getattr(_load(path, search), name, None)
    if found is None:
        raise ConfigError(f"user_script: {path} defines no {name}")
    return found


def _load(path: Path, search: list[str]) -> Any:
    # The digest in the name: an edited script is loaded anew by a worker that stays warm.
    name = f"drupe_user_script_{file_digest(path)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"user_script: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = list(sys.path)
    sys.path[:0] = search
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name]
        raise ConfigError(f"user_script: {path} can't be imported: {error}") from error
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path[:] = before
    return module

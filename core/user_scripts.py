"""Functions from a user's script, loaded after the user's consent."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.digests import file_digest
from drupe.core.errors import ConfigError, DrupeError, EvaluationError
from drupe.core.olive_names import provide_olive_names, registered

__all__ = [
    "blamed",
    "call_loader",
    "call_with_known",
    "in_turn",
    "loader_items",
    "script_function",
    "user_function",
    "user_module",
]

_OF_ENDLESS = 16


def user_function(script: str | Path, name: str, context: JobContext, *, folder: str | None = None) -> Any:
    """Return what `name` is in a script.

    script, folder: relative to the workflow's folder; `folder` is searched for what the script imports, before the
    script's own. Raises ConfigError without consent, when the file or the name does not exist, or when the script can't
    be imported.
    """
    module = user_module(script, context, what=name, folder=folder)
    found: Callable[..., Any] | None = getattr(module, name, None) or registered(module, name)
    if found is None:
        raise ConfigError(f"user_script: {module.__file__} defines no {name}")
    return found


def user_module(script: str | Path, context: JobContext, *, what: str, folder: str | None = None) -> Any:
    """Return a script as a module; see `user_function`. what: what it should define, for messages."""
    context.require_consent("user-scripts", f"running {what} of {script}")
    base = context.workflow_dir or Path()
    path = (base / script).expanduser()
    if not path.is_file():
        raise ConfigError(f"user_script: {path} does not exist; it should define {what}")
    search = [str(path.parent)]
    if folder is not None:
        search.insert(0, str((base / folder).expanduser()))
    return _load(path, search)


def script_function(config: Any, field: str, context: JobContext) -> Callable[..., Any] | None:
    """Return the function that `field` of a config names, or None where it names none.

    config: has user_script and script_dir beside the field. Raises ConfigError without consent, or when the file or the
    function in it does not exist.
    """
    name = getattr(config, field)
    if name is None or config.user_script is None:
        return None
    function = user_function(config.user_script, name, context, folder=config.script_dir)
    if not callable(function):
        raise ConfigError(f"{field}: {name} of {config.user_script} is no function")
    return function  # type: ignore[no-any-return]


@contextmanager
def blamed(
    name: str | None, script: str | None, kind: type[EvaluationError] | type[ConfigError] = EvaluationError
) -> Iterator[None]:
    """Turn what a user's function raises into an error that names the function, its script and its line."""
    try:
        yield
    except DrupeError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_of(frame.filename, script)]
        where = f"{script}, line {lines[-1]}" if lines else f"{script}"
        raise kind(f"{name} ({where}) raised {type(error).__name__}: {error}") from error


def _is_of(filename: str, script: str | None) -> bool:
    return script is not None and Path(filename).name == Path(script).name


def call_with_known(function: Callable[..., Any], offered: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """Call a user's function with those of `offered` that its signature names, and with all of `own`.

    own wins; a key of `own` that the signature lacks is the user's error and raises TypeError.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    known = {key: value for key, value in offered.items() if takes_any or key in names}
    return function(**{**known, **own})


def call_loader(
    function: Callable[..., Any],
    own: Mapping[str, Any],
    *,
    data_dir: str | None,
    batch_size: int,
    framework: str | None,
) -> Any:
    """Call a user's function that makes a data loader, with what its signature asks for and all of `own`.

    The folder and the batch size come first, and may have names of the script's own there (`batchsize`). framework:
    Olive's name of what runs the model ("ONNX", "PyTorch"), given as model_framework.
    """
    parameters = list(inspect.signature(function).parameters.values())
    offered: dict[str, Any] = {"data_dir": data_dir, "batch_size": batch_size, "model_framework": framework}
    own_names = dict(own)
    for parameter, usual in zip(parameters[:2], ("data_dir", "batch_size"), strict=False):
        named = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
        if named and parameter.name not in offered and parameter.name not in own:
            own_names[parameter.name] = offered.pop(usual)
    return call_with_known(function, offered, own_names)


def in_turn(items: Any) -> Iterator[Any]:
    """Iterate over a loader as its author meant it: by its length where it has one and is read by index.

    Many data set classes have only __len__ and __getitem__, and some of those raise nothing at their end.
    """
    if hasattr(items, "__len__") and hasattr(items, "__getitem__") and not isinstance(items, Mapping):
        return (items[index] for index in range(len(items)))
    return iter(items)


def loader_items(loader: Any) -> tuple[Iterator[Any], int | None]:
    """Return what a user's loader yields in turn, and how much is taken of it where it would never end.

    Loaders for latency make inputs up for whatever index they are asked for, and are written with neither a length nor
    an iterator; asked for one far off, a loader that ends raises. Raises TypeError for what can't be iterated over.
    """
    if hasattr(loader, "__iter__") or hasattr(loader, "__len__") or not hasattr(loader, "__getitem__"):
        return in_turn(loader), None
    try:
        loader[10**9]
    except Exception:
        return iter(loader), None
    return (loader[index] for index in range(_OF_ENDLESS)), _OF_ENDLESS


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
    provide_olive_names()
    _forget_others(search)
    before = list(sys.path)
    sys.path[:0] = search
    try:
        spec.loader.exec_module(module)
        # Its functions may import when they are called: behind everything else, what it searched stays searched.
        before += [folder for folder in sys.path if folder not in before]
    except ImportError as error:
        del sys.modules[name]
        raise ConfigError(f"user_script: {path} can't be imported: {error}{_way_out(error)}") from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else (lines or [None])[-1]
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"user_script: {where} can't be imported: {type(error).__name__}: {error}") from error
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path[:] = before
    return module


def _forget_others(search: list[str]) -> None:
    """Forget modules of an earlier script whose names lie in the folders of this one as well (config.py, models.py)."""
    for folder in map(Path, search):
        for path in folder.glob("*") if folder.is_dir() else ():
            name = path.stem
            if name not in sys.modules or not (path.suffix == ".py" or path.is_dir()):
                continue
            homes = _homes(sys.modules[name])
            if folder not in homes and any(str(home) in _searched for home in homes):
                for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                    del sys.modules[loaded]
    _searched.update(search)


def _homes(module: Any) -> list[Path]:
    """Return the folders that a top-level module or package lies in; a namespace has several."""
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    return [Path(place).parent for place in places if place is not None]


_searched: set[str] = set()
"""The folders in which scripts of this process have looked for what they import."""


def _way_out(error: ImportError) -> str:
    wanted = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or wanted in ("", "olive"):
        return ""
    return (
        f"; {wanted} is no installed package, and lies neither beside the script nor in a script_dir: install it, or "
        "name its folder as script_dir"
    )

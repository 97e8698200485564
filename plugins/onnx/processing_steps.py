"""The steps of onnxruntime-extensions' pre_post_processing tool, as workflows write them: read, checked, built.

A step is {"Name": {"parameter": value}}, or {"Name": {"params": {…}, "io_map": [[producer, its output, input], …]}}
where inputs come from other steps than the one before. A list is a tuple for the tool, {"type": "list", "value": […]} a
list, {"type": "Name", "params": {…}} an object of the tool, and {"type": "__model_input__" or "__model_output__",
"input_index" or "output_index": n, "dim_index": n} a length that the model's graph states.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError
from drupe.core.introspect import FieldInfo, function_parameters, module_source

__all__ = ["TOOL", "beside", "build_step", "check_steps", "tool_functions"]

TOOL = "onnxruntime_extensions.tools.add_pre_post_processing_to_model"
"""The module with whole pipelines for kinds of models."""
_PACKAGE = "onnxruntime_extensions.tools.pre_post_processing"
_STEPS = tuple(f"{_PACKAGE}.steps.{module}" for module in ("general", "nlp", "vision"))
_OF_MODEL = {"__model_input__": "input", "__model_output__": "output"}


@dataclass(frozen=True)
class _Written:
    name: str
    params: Mapping[str, Any]
    io_map: Sequence[Sequence[Any]]


def tool_functions() -> Mapping[str, Mapping[str, FieldInfo]]:
    """Return the tool's pipelines and their parameters beside the files; {} where the library is not installed."""
    try:
        tree = ast.parse(module_source(TOOL).read_bytes())
    except LookupError:
        return {}
    names = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and len(node.args.args) >= 2 and "file" in node.args.args[1].arg
    ]
    return {name: dict(list(function_parameters(TOOL, name).items())[2:]) for name in names}


def check_steps(field: str, steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for steps that the installed library does not have, or not so. Imports nothing."""
    known = _classes()
    for index, step in enumerate(steps):
        written = _read(f"{field}.{index}", step)
        if not known:
            continue
        if written.name not in known:
            raise ValueError(
                f"{field}.{index}: onnxruntime-extensions has no step {written.name!r}{_near(written.name, known)}"
            )
        parameters = function_parameters(known[written.name], f"{written.name}.__init__")
        for name in written.params:
            if name not in parameters:
                raise ValueError(f"{field}.{index}: {written.name} has no parameter {name!r}{_near(name, parameters)}")
        absent = [name for name, info in parameters.items() if info.required and name not in written.params]
        if absent:
            raise ValueError(f"{field}.{index}: {written.name} lacks {', '.join(absent)}")


def build_step(step: Mapping[str, Any], graph: Any, folder: Path) -> Any:
    """Return the library's step, or a pair of it and its connections. graph: whose lengths placeholders mean; folder:
    where files that a parameter names are looked for.

    Raises ConfigError for what the library does not take.
    """
    from onnxruntime_extensions.tools import pre_post_processing as library

    written = _read("the step", step)
    params = {name: _parameter(name, value, graph, written.name, folder) for name, value in written.params.items()}
    try:
        made = getattr(library, written.name)(**params)
    except (AssertionError, TypeError, ValueError) as error:
        told = f": {error}" if str(error) else ""
        raise ConfigError(f"the step {written.name} does not take {params}{told}") from error
    if not written.io_map:
        return made
    return made, [library.IoMapEntry(*entry) for entry in written.io_map]


def _read(where: str, step: Mapping[str, Any]) -> _Written:
    if len(step) != 1:
        raise ValueError(
            f'{where}: {len(step)} keys; expected one, the step\'s name: {{"Resize": {{"resize_to": 256}}}}'
        )
    ((name, params),) = step.items()
    params = params or {}
    if not isinstance(params, Mapping):
        raise ValueError(f"{where}: {name} is {type(params).__name__}; expected its parameters by name")
    if not {"params", "io_map"} & set(params):
        return _Written(name, params, ())
    more = sorted(set(params) - {"params", "io_map"})
    if more:
        raise ValueError(f"{where}: {name} has {', '.join(more)} beside params and io_map")
    entries = params.get("io_map") or ()
    for entry in entries:
        if not (isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 3):
            raise ValueError(f"{where}: io_map of {name} holds {entry!r}; expected [producer, its output, input]")
    return _Written(name, params.get("params") or {}, entries)


def _classes() -> dict[str, str]:
    """Return step → its module, from the installed library's source; {} where it is not installed."""
    found = {}
    for module in _STEPS:
        try:
            tree = ast.parse(module_source(module).read_bytes())
        except LookupError:
            return {}
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.bases:
                found[node.name] = module
    return found


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}"


def beside(name: str, value: Any, folder: Path) -> Any:
    """Return the file beside the model's graph that a parameter means, or the value of a parameter of another kind.

    Raises ConfigError where it is not there: only what belongs to the model is known to the step's key and at hand on
    every host.
    """
    if not (name.endswith("file") and isinstance(value, str)):
        return value
    path = folder / value
    if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
        return path
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    raise ConfigError(f"{name}: {value} does not lie beside the model's graph; there are {', '.join(there)}")


def _parameter(name: str, value: Any, graph: Any, step: str, folder: Path) -> Any:
    given = beside(name, value, folder)
    if not isinstance(given, Path):
        return _value(given, graph, step, folder)
    return _vocabulary(given) if name == "vocab_or_file" and given.suffix in (".txt", ".json") else given


def _vocabulary(path: Path) -> dict[str, int]:
    """Return token → id of a tokenizer's file: a token a line, {token: id}, or a whole tokenizer.json.

    The library reads the second form only. Raises ConfigError for files that hold something else.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return {line: index for index, line in enumerate(text.split("\n")) if line}
    try:
        found = json.loads(text)
        if isinstance(found.get("model"), Mapping):
            found = found["model"]["vocab"]
        return {str(token): int(index) for token, index in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"vocab_or_file: {path.name} holds no vocabulary; expected a .txt file with a token a line, or JSON with "
            "the ids of the tokens, as vocab.json and tokenizer.json of a WordPiece tokenizer have them"
        ) from error


def _value(value: Any, graph: Any, step: str, folder: Path) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_value(item, graph, step, folder) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    if kind in _OF_MODEL:
        return _length(value, graph, step)
    if kind in ("list", "tuple"):
        items = [_value(item, graph, step, folder) for item in value.get("value") or ()]
        return items if kind == "list" else tuple(items)
    from onnxruntime_extensions.tools import pre_post_processing as library

    made = getattr(library, str(kind), None)
    if made is None:
        raise ConfigError(f"the step {step}: {kind!r} is no type of onnxruntime-extensions' tool, nor list or tuple")
    inner = (value.get("params") or {}).items()
    return made(**{name: _parameter(name, item, graph, step, folder) for name, item in inner})


def _length(value: Mapping[str, Any], graph: Any, step: str) -> int:
    """Return the length of an axis that a placeholder means. Raises ConfigError where the graph leaves it open."""
    what = _OF_MODEL[str(value["type"])]
    index, axis = int(value.get(f"{what}_index", 0)), int(value.get("dim_index", 0))
    try:
        entry = getattr(graph, what)[index]
        dim = entry.type.tensor_type.shape.dim[axis]
    except IndexError as error:
        raise ConfigError(f"the step {step}: the graph has no axis {axis} of {what} {index}") from error
    if not dim.dim_value:
        raise ConfigError(
            f"the step {step}: axis {axis} of {entry.name} is open ({dim.dim_param or 'no name'}); give its length, or "
            "fix it with DynamicToFixedShape"
        )
    return int(dim.dim_value)

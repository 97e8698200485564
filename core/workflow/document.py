"""Reads a workflow file's text: JSON or YAML into plain data, with line and column of what is malformed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from drupe.core.errors import ConfigError, Fault

__all__ = ["parse_document", "read_document"]

_MOST_VALUES = 200_000
"""More values than any workflow has: a YAML file of nested aliases would unfold without end."""
_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9_]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+|[0-9][0-9_]*\.)$"
)
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)$")


def read_document(path: Path) -> dict[str, Any]:
    """Return the mapping that a workflow file holds.

    Raises ConfigError, with every fault, when the file can't be read or is no well-formed JSON or YAML mapping.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(faults=[_missing_file(path)]) from None
    except UnicodeDecodeError as error:
        raise _malformed(path, f"byte {error.start} is not UTF-8", "a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(faults=[Fault(str(path), f"can't be read: {error.strerror}", "a workflow file")]) from None
    return parse_document(text, path)


def parse_document(text: str, path: Path) -> dict[str, Any]:
    """Return the mapping that a workflow's text holds; JSON where the file's name or first character says so.

    Raises ConfigError.
    """
    is_json = path.suffix.lower() == ".json" or (
        path.suffix.lower() not in (".yaml", ".yml") and text.lstrip().startswith("{")
    )
    try:
        data, duplicates = _parse_json(text, path) if is_json else _parse_yaml(text, path)
        if not isinstance(data, dict):
            raise _malformed(path, f"the file holds {_named(data)}", "a mapping with input_model and passes")
        count = 0
        for item in _values(data):
            count += 1
            if not isinstance(item, (dict, list, str, int, float, NoneType)):
                raise _malformed(path, f"{item!r} is a {type(item).__name__}", "texts, numbers, true, false and null")
    except RecursionError:
        raise _malformed(path, "the file nests too deeply", "a workflow") from None
    if count > _MOST_VALUES:
        raise _malformed(path, f"the file unfolds to more than {_MOST_VALUES} values", "a workflow")
    if duplicates:
        raise ConfigError(faults=duplicates)
    return data


def _missing_file(path: Path) -> Fault:
    import difflib

    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix.lower() in (".json", ".yaml", ".yml")]
    except OSError:
        return Fault(str(path), "the folder does not exist", "a workflow file", f"looked for {path.resolve()}")
    if path.is_symlink():
        return Fault(str(path), "a link to what is not there", "a workflow file", f"it leads to {path.readlink()}")
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"looked for {path.resolve()}"
    return Fault(str(path), "no such file", "a workflow file", hint)


def _malformed(path: Path, found: str, expected: str, hint: str = "") -> ConfigError:
    return ConfigError(faults=[Fault(str(path), found, expected, hint)])


def _named(data: Any) -> str:
    names: dict[type, str] = {NoneType: "nothing", list: "a list", str: "a text"}
    return names.get(type(data), f"a {type(data).__name__}")


def _values(data: Any, limit: int = _MOST_VALUES + 1) -> Iterator[Any]:
    stack = [data]
    while stack and limit:
        limit -= 1
        item = stack.pop()
        yield item
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _parse_json(text: str, path: Path) -> tuple[Any, list[Fault]]:
    repeated: list[tuple[dict[str, Any], str]] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            repeated.extend((result, name) for name in result if names.count(name) > 1)
        return result

    def constant(name: str) -> Any:
        raise _malformed(path, name, "a number that JSON knows", "write null, or a text such as 'inf'")

    try:
        data = json.loads(text, object_pairs_hook=mapping, parse_constant=constant)
    except json.JSONDecodeError as error:
        hint = _json_hint(text, error)
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise ConfigError(faults=[Fault(where, f"malformed JSON: {error.msg}", "", hint)]) from None
    return data, [
        Fault(_place(data, owner, name), "the key is given twice", "each key once", "keep one of them")
        for owner, name in repeated
    ]


def _json_hint(text: str, error: json.JSONDecodeError) -> str:
    if not text.strip():
        return "the file is empty"
    before = text[: error.pos].rstrip()
    rest = text[error.pos : error.pos + 2]
    if rest[:1] in ("}", "]") or (before.endswith(",") and rest[:1] in ("}", "]")):
        return "is there a comma before the closing bracket?"
    if rest in ("//", "/*") or rest[:1] == "#":
        return "JSON has no comments; use YAML for a file with comments"
    if rest[:1] == "'":
        return "JSON texts stand in double quotes"
    return "is a comma missing before this?" if "delimiter" in error.msg else ""


def _place(data: Any, owner: dict[str, Any], name: str) -> str:
    """The path in the file of a key of one very mapping."""
    stack: list[tuple[Any, tuple[str, ...]]] = [(data, ())]
    while stack:
        item, path = stack.pop()
        if item is owner:
            return ".".join([*path, name])
        children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        stack.extend((child, (*path, str(key))) for key, child in children)
    return name


def _parse_yaml(text: str, path: Path) -> tuple[Any, list[Fault]]:
    import yaml

    duplicates: list[Fault] = []
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        """YAML as JSON knows it: no dates, no octal or base-60 numbers, `no` and `off` are texts, 1e-5 is a number."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key_node, _ in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                if key is None:
                    mark = key_node.start_mark
                    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}"
                    raise ConfigError(faults=[Fault(where, "a key that is no text", "a name")])
                if key in seen and key != "<<":
                    mark = key_node.start_mark
                    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}"
                    duplicates.append(Fault(where, f"the key {key!r} is given twice", "each key once", "keep one"))
                seen.add(key)
            self.flatten_mapping(node)
            return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    Loader.yaml_implicit_resolvers = {}
    for tag, pattern, first in (
        ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
        ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
        ("int", _INT, "-+0123456789"),
        ("float", _FLOAT, "-+0123456789."),
        ("merge", re.compile(r"^(?:<<)$"), "<"),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list(first))
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: _integer(node.value))
    Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))
    try:
        return yaml.load(text, Loader=Loader), duplicates
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(faults=[Fault(where, f"malformed YAML: {problem}", "", _yaml_hint(text, mark))]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise _malformed(path, f"malformed YAML: {error}", "") from None


def _integer(text: str) -> int:
    return int(text.replace("_", ""), 0)


def _yaml_hint(text: str, mark: Any) -> str:
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "YAML is indented with spaces, not tabs"
    if ": " in line.split(": ", 1)[-1]:
        return "a text that holds ': ' stands in quotes"
    return ""

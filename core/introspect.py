"""Reads names out of an installed library's source without importing it.

A config that passes options on to a heavy library can check them before work starts: which fields a dataclass has,
which parameters a function takes, which keys a module reads from a mapping, which choices a command line offers. What
was read is cached on disk; the key holds the library's version and the size and time of every file that was read.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = [
    "FieldInfo",
    "argument_choices",
    "cache_folder",
    "class_fields",
    "function_parameters",
    "mapping_keys",
    "module_source",
]

_FORMAT = 1
"""Raised when what is written to the cache changes its meaning."""


@dataclass(frozen=True)
class FieldInfo:
    """A field or parameter as its source states it.

    annotation: as written ("" where there is none). default: the literal default; None where it is no literal (then
    `default_source` still has its text) or where there is none (`required`). doc: a dataclass field's metadata "help".
    """

    name: str
    annotation: str = ""
    default: Any = None
    default_source: str | None = None
    required: bool = False
    doc: str = ""


def cache_folder() -> Path:
    """Return the folder for what Drupe may rebuild at any time: $DRUPE_HOME or ~/.cache/drupe."""
    home = os.environ.get("DRUPE_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "drupe"


def module_source(module: str) -> Path:
    """Return the source file of a module, or a package's __init__.py, without importing anything.

    Raises LookupError when the module is not installed or has no source.
    """
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise LookupError(f"{top} is not installed, so the names in {module} can't be read")
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for location in spec.submodule_search_locations or ():
        stem = Path(location).joinpath(*rest)
        for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise LookupError(f"{module} has no source file in the installed {top}")


def class_fields(module: str, class_name: str) -> Mapping[str, FieldInfo]:
    """Return the annotated fields of a class in order, those of its bases first (a dataclass's constructor).

    Bases are followed inside the same distribution. ClassVars and names with a leading underscore are left out. Raises
    LookupError when the module or class can't be found.
    """
    return _fields_of("class", module, class_name)


def function_parameters(module: str, function: str) -> Mapping[str, FieldInfo]:
    """Return the named parameters of a function or method ("Class.method", less self) in order.

    Raises LookupError when it can't be found.
    """
    return _fields_of("function", module, function)


def mapping_keys(module: str, variable: str) -> frozenset[str]:
    """Return the literal keys that a module, or every module of a package, reads from a mapping of that name.

    Counted are `variable["k"]`, `variable.get("k")`, `.pop("k")`, `.setdefault("k", …)`, `"k" in variable`, and loops
    over literal names that do one of these; `self.variable` counts like `variable`.
    """

    def read(sources: _Sources) -> list[str]:
        found: set[str] = set()
        for path in sources.package_files(module, mentioning=variable):
            found |= _keys_in(sources.tree(path), variable)
        return sorted(found)

    return frozenset(_cached(("keys", module, variable), module, read))


def argument_choices(module: str, option: str) -> tuple[str, ...]:
    """Return the `choices` of an argparse option ("--precision") as the module's source lists them.

    Raises LookupError when the module has no such option or it has no literal choices.
    """

    def read(sources: _Sources) -> list[str]:
        for node in ast.walk(sources.tree(module_source(module))):
            if not (isinstance(node, ast.Call) and _called(node) == "add_argument"):
                continue
            if option not in (_literal(arg) for arg in node.args):
                continue
            for keyword in node.keywords:
                choices = _literal(keyword.value) if keyword.arg == "choices" else None
                if isinstance(choices, (list, tuple)):
                    return [str(choice) for choice in choices]
        raise LookupError(f"{module} has no command-line option {option} with listed choices")

    return tuple(_cached(("choices", module, option), module, read))


class _Sources:
    """Parses source files and remembers which ones were read."""

    def __init__(self) -> None:
        self.trees: dict[Path, ast.Module] = {}

    def tree(self, path: Path) -> ast.Module:
        if path not in self.trees:
            self.trees[path] = ast.parse(path.read_bytes(), filename=str(path))
        return self.trees[path]

    def package_files(self, module: str, mentioning: str) -> list[Path]:
        path = module_source(module)
        files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
        return [file for file in files if mentioning.encode() in file.read_bytes()]


def _fields_of(kind: str, module: str, name: str) -> Mapping[str, FieldInfo]:
    def read(sources: _Sources) -> list[dict[str, Any]]:
        found = _class(sources, module, name) if kind == "class" else _parameters(sources, module, name)
        return [asdict(info) for info in found.values()]

    return MappingProxyType({data["name"]: FieldInfo(**data) for data in _cached((kind, module, name), module, read)})


def _class(sources: _Sources, module: str, name: str, depth: int = 0) -> dict[str, FieldInfo]:
    tree = sources.tree(module_source(module))
    node = next((n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:
        raise LookupError(f"{module} has no class {name}")
    fields: dict[str, FieldInfo] = {}
    for base in node.bases if depth < 8 else ():
        where = _origin(tree, module, base.id) if isinstance(base, ast.Name) else None
        if where is not None:
            fields |= _class(sources, *where, depth + 1)
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        annotation = ast.unparse(item.annotation)
        if not item.target.id.startswith("_") and "ClassVar" not in annotation:
            fields[item.target.id] = _field(item.target.id, annotation, item.value)
    return fields


def _origin(tree: ast.Module, module: str, name: str) -> tuple[str, str] | None:
    """Where a class's base comes from: this module, or a module of the same distribution; None for others."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, name
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) != name:
                    continue
                package = module.split(".")[: -node.level] if node.level else []
                source = ".".join([*package, *([node.module] if node.module else [])])
                return (source, alias.name) if source.split(".")[0] == module.split(".")[0] else None
    return None


def _field(name: str, annotation: str, value: ast.expr | None) -> FieldInfo:
    doc = ""
    if isinstance(value, ast.Call) and _called(value) == "field":
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        metadata = keywords.get("metadata")
        if isinstance(metadata, ast.Dict):
            for key, item in zip(metadata.keys, metadata.values, strict=True):
                if key is not None and _literal(key) == "help":
                    doc = str(_literal(item) or "")
        factory = keywords.get("default_factory")
        if factory is not None:
            return FieldInfo(name, annotation, None, f"{ast.unparse(factory)}()", False, " ".join(doc.split()))
        value = keywords.get("default")
    return FieldInfo(
        name,
        annotation,
        _plain(_literal(value)) if value is not None else None,
        ast.unparse(value) if value is not None else None,
        value is None,
        " ".join(doc.split()),
    )


def _parameters(sources: _Sources, module: str, name: str) -> dict[str, FieldInfo]:
    scope: ast.AST = sources.tree(module_source(module))
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = (n for n in ast.walk(scope) if isinstance(n, kinds) and n.name == part)
        found = next(nodes, None)
        if found is None:
            raise LookupError(f"{module} has no function {name}")
        scope = found
    if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise LookupError(f"{name} in {module} is no function")
    arguments = scope.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [
        *zip(positional, [*defaults, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {
        arg.arg: _field(arg.arg, ast.unparse(arg.annotation) if arg.annotation else "", default)
        for index, (arg, default) in enumerate(pairs)
        if not (index == 0 and "." in name and arg.arg in ("self", "cls"))
    }


def _keys_in(tree: ast.Module, variable: str) -> set[str]:
    constants = {
        target.id: value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and (value := _names(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: set[str] = set()
    looped: list[tuple[str, set[str]]] = []
    by_name: set[str] = set()
    for node in ast.walk(tree):
        for key in _reads(node, variable):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                found.add(key.value)
            elif isinstance(key, ast.Name):
                by_name.add(key.id)
        if isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
            names = _names(node.iter) or (constants.get(node.iter.id, set()) if isinstance(node.iter, ast.Name) else ())
            if names:
                looped.append((node.target.id, set(names)))
    return found.union(*(names for name, names in looped if name in by_name))


def _reads(node: ast.AST, variable: str) -> Iterator[ast.expr]:
    """The key expressions with which a node looks into the mapping."""
    if isinstance(node, ast.Subscript) and _is_named(node.value, variable):
        yield node.slice
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
        if _is_named(node.comparators[0], variable):
            yield node.left
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get", "pop", "setdefault")
        and node.args
        and _is_named(node.func.value, variable)
    ):
        yield node.args[0]


def _is_named(node: ast.AST, variable: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == variable) or (
        isinstance(node, ast.Attribute) and node.attr == variable
    )


def _names(node: ast.AST) -> set[str]:
    """The strings of a literal list, tuple or set of strings; empty for anything else."""
    if not isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return set()
    values = [item.value for item in node.elts if isinstance(item, ast.Constant)]
    strings = {value for value in values if isinstance(value, str)}
    return strings if len(values) == len(node.elts) == len([v for v in values if isinstance(v, str)]) else set()


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _literal(node: ast.AST) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """JSON's view of a literal, so that a cached answer equals a fresh one; None for what JSON can't hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None


_answers: dict[tuple[str, ...], Any] = {}
"""What this process has looked up already, by query and the identity of the module's source."""


def _cached(query: tuple[str, ...], module: str, read: Callable[[_Sources], Any]) -> Any:
    key = (*query, str(module_source(module)), _identity(module_source(module)))
    if key not in _answers:
        _answers[key] = _answer(key, module, read)
    return _answers[key]


def _answer(key: tuple[str, ...], module: str, read: Callable[[_Sources], Any]) -> Any:
    name = hashlib.sha256(json.dumps([_FORMAT, key, _version(module)]).encode()).hexdigest()[:32]
    path = cache_folder() / "introspect" / f"{name}.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if all(_identity(Path(file)) == stamp for file, stamp in stored["files"].items()):
            return stored["answer"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # An absent or damaged entry is written anew.
    sources = _Sources()
    answer = read(sources)
    _store(path, {"files": {str(file): _identity(file) for file in sources.trees}, "answer": answer})
    return answer


def _store(path: Path, entry: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(entry), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # A cache that can't be written costs time, not correctness.


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _version(module: str) -> str:
    top = module.split(".")[0]
    for name in (top, top.replace("_", "-")):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return top

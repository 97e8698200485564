"""Writes the pages of this folder from the installed passes and the catalogue: python docs/passes/generate.py"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.catalogue import get_catalogue
from drupe.core.parameters import Parameter, parameters
from drupe.core.registry import Registered, get_registry

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/passes/generate.py; changes go into the passes themselves. -->"
ORDER = ("built-in", "contrib", "vendor", "not yet")


def pages() -> Mapping[str, str]:
    """Return file name → text."""
    registry = get_registry()
    own = {entry.spec.name: entry for entry in registry.of("drupe_passes") if entry.plugin.distribution == "drupe"}
    found = {f"{name}.md": _page(registry, entry) for name, entry in sorted(own.items())}
    return {**found, "README.md": _overview(own), "surgeons.md": _surgeons(registry)}


def _overview(own: Mapping[str, Registered]) -> str:
    names = get_catalogue().names("passes")
    counts = {kind: sum(_kind(provider) == kind for provider in names.values()) for kind in ORDER}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    rows = []
    for name, provider in sorted(names.items(), key=lambda item: (ORDER.index(_kind(item[1])), item[0].lower())):
        entry = own.get(name)
        shown = f"[{name}]({name}.md)" if entry else name
        rows.append(f"| {shown} | {provider} | {entry.spec.summary if entry else ''} |")
    head = ["# Passes", "", NOTE, "", f"Of the {len(names)} passes that public workflows name: {told}."]
    return "\n".join([*head, "", "| pass | provided by | what it does |", "|---|---|---|", *rows, ""])


def _kind(provider: str) -> str:
    return provider.split(":")[0]


def _page(registry: Any, entry: Registered) -> str:
    spec: Any = entry.spec
    target = registry.resolve(entry)
    takes = ", ".join(f"`{kind}`" for kind in sorted(spec.accepts)) or "any"
    makes = f"`{spec.produces}`" if spec.produces else "the same kind"
    doc = inspect.cleandoc(target.__doc__ or "")
    lines = [f"# {spec.name}", "", NOTE, "", doc, "", f"Takes {takes} models, makes {makes}."]
    if spec.aliases:
        lines.append(f"Also called {', '.join(spec.aliases)}.")
    if spec.accelerators:
        lines.append(f"For {', '.join(sorted(spec.accelerators))}.")
    if spec.requires:
        apart = ", in an environment of its own" if spec.own_environment else ""
        apart = ", on the target's system" if spec.on_target else apart
        lines.append(f"Needs {', '.join(f'`{text}`' for text in spec.requires)}{apart}.")
    return "\n".join([*lines, "", *_table(parameters(target.Config)), ""])


def _surgeons(registry: Any) -> str:
    lines = [
        "# Surgeons",
        "",
        NOTE,
        "",
        "What an entry of `surgeries` in [GraphSurgeries](GraphSurgeries.md) may name.",
    ]
    for entry in sorted(registry.of("drupe_surgeons"), key=lambda entry: entry.spec.name):
        if entry.plugin.distribution == "drupe":
            target = registry.resolve(entry)
            lines += ["", f"## {entry.spec.name}", "", inspect.cleandoc(target.__doc__ or "")]
            listed = parameters(target.Config)
            lines += ["", *_table(listed)] if listed else []
    return "\n".join([*lines, ""])


def _table(listed: list[Parameter]) -> list[str]:
    rows = ["| parameter | type | default | meaning |", "|---|---|---|---|"]
    for one in listed:
        default = one.default_text.removeprefix(" = ")
        shown = "required" if one.required else f"`{default}`" if default else ""
        meaning = " ".join(filter(None, (one.doc, f"({one.search_text})" if one.search_text else "")))
        cells = (text.replace("|", "\\|") for text in (one.name, one.type, shown, meaning))
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Write the pages; those of passes that are gone are removed."""
    written = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(written)} pages\n")


if __name__ == "__main__":
    main()

"""`drupe passes`: which passes there are, and what one takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from drupe.core.registry import Registered, Registry
    from drupe.core.specs import PassSpec

__all__ = ["passes"]

_HOOK = "drupe_passes"


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def passes(name: str | None, as_json: bool) -> None:
    """List the passes of all installed plugins, or show the pass NAME with its parameters."""
    from drupe.core.registry import get_registry

    registry = get_registry()
    if name is None:
        _list(registry, as_json)
    else:
        _show(registry, registry.get(_HOOK, name), as_json)


def _list(registry: Registry, as_json: bool) -> None:
    entries = sorted(registry.of(_HOOK), key=lambda entry: (entry.spec.name.lower(), entry.qualified))
    if as_json:
        import json

        click.echo(json.dumps([_facts(registry, entry) for entry in entries], indent=1))
        return
    from drupe.core.cli.tables import columns

    rows = [
        (registry.reference(e), _kinds(cast("PassSpec", e.spec)), e.plugin.distribution, e.spec.summary)
        for e in entries
    ]
    click.echo(columns(("pass", "models", "from", "what it does"), rows))
    unusable = [plugin for plugin in registry.plugins if plugin.status in ("broken", "incompatible")]
    if unusable:
        click.echo(f"{len(unusable)} of the plugins can't be used; drupe plugins tells why", err=True)


def _kinds(spec: PassSpec) -> str:
    accepted = ", ".join(sorted(spec.accepts)) or "any"
    return accepted if spec.produces is None or {spec.produces} == spec.accepts else f"{accepted} → {spec.produces}"


def _facts(registry: Registry, entry: Registered) -> dict[str, Any]:
    return {
        "reference": registry.reference(entry),
        **entry.spec.to_json(),
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
        "plugin": entry.plugin.name,
    }


def _show(registry: Registry, entry: Registered, as_json: bool) -> None:
    import inspect

    from drupe.core.parameters import parameters

    found = registry.resolve(entry)
    doc = inspect.getdoc(found) or entry.spec.summary
    described = parameters(found.Config)
    if as_json:
        import json

        facts = _facts(registry, entry) | {"doc": doc, "parameters": [p.to_json() for p in described]}
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    spec = cast("PassSpec", entry.spec)
    lines = [registry.reference(entry), "", doc, "", f"models:    {_kinds(spec)}"]
    for title, values in (
        ("for", sorted(spec.accelerators)),
        ("through", sorted(spec.providers)),
        ("precision", sorted(spec.precisions)),
        ("requires", spec.requires),
        ("also named", spec.aliases),
    ):
        if values:
            lines.append(f"{title + ':':10} {', '.join(values)}")
    lines += [f"from:      {entry.plugin}, {spec.target}", ""]
    lines.append("parameters" if described else "no parameters")
    for parameter in described:
        lines.append(f"  {parameter.name}: {parameter.type}{parameter.default_text}")
        for text in (parameter.doc, parameter.search_text):
            if text:
                lines.append(f"      {text}")
    click.echo("\n".join(lines))

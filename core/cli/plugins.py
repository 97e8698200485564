"""`drupe plugins`: what is installed, how it fares, and whether it keeps the contracts."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drupe.core.plugin_check import Finding
    from drupe.core.registry import Plugin, Registry

__all__ = ["plugins"]


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="Also those that the policy keeps out, and warnings.")
@click.option("--hook", help="Only those that contribute through this hook (drupe_passes, or passes), with what.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool, everything: bool, hook: str | None) -> None:
    """List the installed plugins and how they fare."""
    if ctx.invoked_subcommand is not None:
        return
    from drupe.core.registry import Registry

    registry = Registry.discover()
    wanted = _hook(registry, hook) if hook else None
    contributed = _contributed(registry)
    shown = [
        plugin
        for plugin in sorted(registry.plugins, key=lambda p: (p.distribution != "drupe", p.distribution, p.name))
        if (everything or plugin.status not in ("blocked", "not allowed"))
        and (wanted is None or wanted in contributed[plugin] or wanted in plugin.observes)
    ]
    if as_json:
        import json

        click.echo(json.dumps([_facts(plugin, contributed[plugin]) for plugin in shown], indent=1, ensure_ascii=False))
        return
    from drupe.core.cli.tables import columns

    rows = [
        (p.name, p.distribution, p.version, p.status, _contributes(p, contributed[p], wanted, registry)) for p in shown
    ]
    click.echo(columns(("plugin", "from", "version", "status", "contributes"), rows))
    for plugin in shown:
        if plugin.error:
            click.echo(f"\n{plugin} is {plugin.status}: {plugin.error}")
        for warning in plugin.warnings if everything else ():
            click.echo(f"\n{plugin}: {warning}")
    hidden = len(registry.plugins) - len(shown)
    if hidden and wanted is None:
        click.echo(f"\n{hidden} more that the policy keeps out; drupe plugins --all shows them")


@plugins.command()
@click.argument("name")
@click.option("--quick", is_flag=True, help="Don't run its passes on tiny models.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(name: str, quick: bool, as_json: bool) -> None:
    """Import everything that the plugin (or distribution) NAME contributes and run the contract kit on it.

    Exit codes: 0 everything holds; 1 something does not; 2 there is no such plugin.
    """
    from drupe.core.plugin_check import check_plugin
    from drupe.core.registry import Registry

    registry = Registry.discover()
    findings = [finding for p in _named(registry, name) for finding in check_plugin(registry, p, run=not quick)]
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        for line in _lines(findings):
            click.echo(line)
    sys.exit(1 if any(finding.outcome == "FAIL" for finding in findings) else 0)


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A line per finding; cases that were not checked for one reason share theirs."""
    for (outcome, subject, text), group in itertools.groupby(findings, lambda f: (f.outcome, f.subject, f.text)):
        cases = [finding.what for finding in group]
        if outcome == "not checked" and len(cases) > 1:
            yield f"{outcome:11} {subject}: {len(cases)} cases: {text}"
        else:
            yield from (f"{outcome:11} {subject}: {case}" + (f": {text}" if text else "") for case in cases)


def _hook(registry: Registry, name: str) -> str:
    from drupe.core.errors import ConfigError

    observed = {hook for plugin in registry.plugins for hook in plugin.observes}
    hooks = sorted({*registry.hooks, *observed})
    for hook in hooks:
        if name in (hook, hook.removeprefix("drupe_")):
            return hook
    raise ConfigError(f"no hook {name!r}; hooks: {', '.join(hooks)}")


def _named(registry: Registry, name: str) -> list[Plugin]:
    from drupe.core.errors import PluginError
    from drupe.core.policy import normalised

    found = [p for p in registry.plugins if p.name == name or normalised(p.distribution) == normalised(name)]
    if not found:
        import difflib

        names = sorted({n for p in registry.plugins for n in (p.name, p.distribution)})
        near = difflib.get_close_matches(name, names, n=1)
        raise PluginError(
            f"no plugin or distribution named {name!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(names)}")
        )
    return found


def _contributed(registry: Registry) -> dict[Plugin, dict[str, list[str]]]:
    contributed: dict[Plugin, dict[str, list[str]]] = {plugin: {} for plugin in registry.plugins}
    for plugin, hook, name in registry.names():
        contributed[plugin].setdefault(hook, []).append(name)
    return contributed


def _contributes(plugin: Plugin, contributed: dict[str, list[str]], wanted: str | None, registry: Registry) -> str:
    if plugin.status != "active":
        return "–"
    if wanted is not None:
        return ", ".join(contributed.get(wanted, ["observes it"]))
    parts = [f"{hook.removeprefix('drupe_').replace('_', ' ')} ({len(n)})" for hook, n in contributed.items()]
    parts += [f"observes {hook.removeprefix('drupe_').replace('_', ' ')}" for hook in plugin.observes]
    return ", ".join(parts) or "nothing"


def _facts(plugin: Plugin, contributed: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "module": plugin.module,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "status": plugin.status,
        "error": plugin.error,
        "warnings": list(plugin.warnings),
        "contributes": contributed,
        "observes": list(plugin.observes),
    }

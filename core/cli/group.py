"""The command line: a group that knows its commands by name and imports one only when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

__all__ = ["main"]

_COMMANDS = {
    "run": ("drupe.core.cli.run:run", "Run a workflow."),
    "validate": ("drupe.core.cli.validate:validate", "Check a workflow; every fault at once, in under a second."),
    "plan": ("drupe.core.cli.plan:plan", "Show the chains and searched values of a workflow."),
    "rehearse": ("drupe.core.cli.rehearse:rehearse", "Run every step on a small random model first."),
    "verify": ("drupe.core.cli.verify:verify", "Check an output folder after the fact."),
    "generate": ("drupe.core.cli.generate:generate", "Generate text with a model of an output folder."),
    "passes": ("drupe.core.cli.passes:passes", "List the passes, or show one with its parameters."),
    "plugins": ("drupe.core.cli.plugins:plugins", "List the installed plugins, or check one."),
    "new-plugin": ("drupe.core.cli.new_plugin:new_plugin", "Write a ready plugin package: pass, tests, pyproject."),
    "schema": ("drupe.core.cli.schema:schema", "Print the JSON Schema of workflow files."),
    "hosts": ("drupe.core.cli.hosts:hosts", "List the hosts and what they are."),
    "cache": ("drupe.core.cli.cache:cache", "Look into the store: ls, gc, why, verify."),
}
"""Name → (where the click command is, what the list of commands says of it)."""


class _Entry(NamedTuple):
    """A command. owner: the distribution of the plugin that contributes it, "" for Drupe's own."""

    target: str
    text: str
    name: str = ""
    owner: str = ""


_plugin_commands: list[_Entry] | None = None


class _Commands(click.Group):
    """The built-in commands and those that plugins contribute through `drupe_commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_available())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # Only a name that is none of Drupe's own makes it look at the plugins.
        entry = _built_in().get(cmd_name) or _available().get(cmd_name)
        return _load(entry) if entry else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in _built_in() and name not in _available():
            import difflib

            if (instead := _instead(name)) is not None:
                ctx.fail(instead)
            near = difflib.get_close_matches(name, _available(), n=1)
            ctx.fail(f"no command {name!r}; " + (f"did you mean {near[0]!r}?" if near else "see drupe --help"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The texts come from the table and the plugin index, so that showing them imports no command.
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.text) for name, entry in sorted(_available().items())])


def _instead(name: str) -> str | None:
    """What to say of a command that another tool has; None for others."""
    from drupe.core.catalogue import get_catalogue
    from drupe.core.errors import DrupeError

    try:
        found = get_catalogue().instead(name)
    except DrupeError:
        return None
    if found is None:
        return None
    text, written = found
    way = f"; `olive {name} … --dry_run` writes its own as config.json, which drupe run takes" if written else ""
    return f"no command {name!r}; what takes its place: {text}{way}"


def _built_in() -> dict[str, _Entry]:
    return {name: _Entry(target, text) for name, (target, text) in _COMMANDS.items()}


def _available() -> dict[str, _Entry]:
    """Every command that can be called: name → what it is."""
    available = _built_in()
    contributed = _contributed()
    names = [entry.name for entry in contributed]
    for entry in contributed:
        # A name that is taken, by a built-in command or by another plugin's, needs its distribution in front.
        clear = entry.name not in _COMMANDS and names.count(entry.name) == 1
        available[entry.name if clear else f"{entry.owner}:{entry.name}"] = entry
    return available


def _contributed() -> list[_Entry]:
    """The commands of plugins. Only where the index is out of date are plugins asked, and they are when it is so."""
    global _plugin_commands
    if _plugin_commands is None:
        from drupe.core.discovery import indexed_commands
        from drupe.core.errors import DrupeError
        from drupe.core.policy import Policy

        try:
            indexed = indexed_commands(Policy.current())
            if indexed is None:
                from drupe.core.registry import Registry

                entries = Registry.discover().of("drupe_commands")
                _plugin_commands = [
                    _Entry(e.spec.target, e.spec.summary, e.spec.name, e.plugin.distribution) for e in entries
                ]
            else:
                _plugin_commands = [
                    _Entry(data["target"], data.get("summary", ""), data["name"], point.distribution)
                    for point, data in indexed
                ]
        except DrupeError as error:
            # The commands of Drupe itself stay there, `drupe plugins` to find out more among them.
            click.echo(f"warning: no plugin commands: {error}", err=True)
            _plugin_commands = []
    return _plugin_commands


def _load(entry: _Entry) -> click.Command:
    if not entry.owner:
        import importlib

        module, _, attribute = entry.target.partition(":")
        built_in: click.Command = getattr(importlib.import_module(module), attribute)
        return built_in
    from drupe.core.errors import PluginError
    from drupe.core.registry import Registry

    registry = Registry.discover()
    command = registry.resolve(registry.get("drupe_commands", f"{entry.owner}:{entry.name}"))
    if not isinstance(command, click.Command):
        raise PluginError(f"the command {entry.name} of {entry.owner}: {entry.target} is no click command")
    return command


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from drupe import __version__

        click.echo(f"drupe {__version__}")
        ctx.exit()


def _no_plugins(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        # Through the environment, so that the workers which this process starts load none either.
        os.environ["DRUPE_NO_PLUGINS"] = "1"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
@click.option(
    "--no-plugins",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_no_plugins,
    help="Load nothing but what Drupe itself brings.",
)
def _cli() -> None:
    """Optimize trained models under accuracy and latency limits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """See drupe.core.cli.main."""
    from drupe.core.errors import DrupeError

    try:
        outcome = _cli.main(None if arguments is None else list(arguments), prog_name="drupe", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as error:
        error.show()
        return 2 if isinstance(error, click.UsageError) else error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except DrupeError as error:
        click.echo(_message(error), err=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`drupe passes | head`): nothing may be written any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from drupe.core.disk import is_full

        # Where it is known what could not be written, that is told instead.
        full = is_full(error) and f"error: {error}; make room and run the same command again"
        click.echo(full or _unexpected(error), err=True)
        return 1


def _message(error: Exception) -> str:
    faults = getattr(error, "faults", ())
    if len(faults) > 1:
        lines = [f"error: {len(faults)} things are wrong", *(f"  {fault.kind}: {fault}" for fault in faults)]
    else:
        lines = [f"error: {error}"]
    tail = getattr(error, "log_tail", "")
    if tail:
        lines += ["the last lines of its log:", *(f"  | {line}" for line in tail.splitlines())]
    return "\n".join(lines)


def _unexpected(error: Exception) -> str:
    """Write the traceback to a file and return the line that says where it is."""
    import time
    import traceback
    from pathlib import Path

    from drupe import __version__

    what = f"{type(error).__name__}: {error}".splitlines()[0]
    text = "".join(traceback.format_exception(error))
    home = os.environ.get("DRUPE_HOME")
    folder = (Path(home).expanduser() if home else Path.home() / ".cache" / "drupe") / "logs"
    path = folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The arguments name the command; their values may be private and are left out.
        path.write_text(f"drupe {__version__}, Python {sys.version}\n\n{text}", encoding="utf-8")
    except OSError as problem:
        return f"error: unexpected {what} (and its traceback can't be written to {path}: {problem})"
    return f"error: unexpected {what}; this is a defect of Drupe or of a plugin. The traceback is in {path}"

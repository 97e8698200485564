"""The command line as a whole: light, one clear message per error, commands of plugins beside its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drupe import __version__
from drupe.core.cli import main
from drupe.core.cli.group import _COMMANDS
from drupe.testing import install_plugin
from tests.support.commands import run_command

COMMANDS = """
import os
import signal
import sys

import click

from drupe import ConfigError, Fault, HostError, PassError, NoFeasibleModel

@click.command()
@click.argument("how")
def fail(how):
    if how == "config":
        raise ConfigError(faults=[Fault("a.b", "3", "a text"), Fault("c", "nothing", kind="needs")])
    if how == "host":
        raise HostError("the board is gone", "line 1\\nline 2")
    if how == "pass":
        raise PassError("the pass broke")
    if how == "goals":
        raise NoFeasibleModel("nothing met the goals")
    if how == "bug":
        raise RuntimeError("two\\nlines")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "exit":
        sys.exit(7)
    if how == "much":
        for number in range(100000):
            click.echo(number)

no_command = 3
"""
PLUGIN = """
from drupe import CommandSpec, hookimpl

@hookimpl
def drupe_commands():
    return [
        CommandSpec(name={name!r}, target="{package}.commands:{target}", summary="Fail as asked."),
    ]
"""


def install(folder: Path, name: str = "fail", package: str = "failing", target: str = "fail") -> Path:
    plugin = PLUGIN.format(name=name, package=package, target=target)
    files = {f"{package}/__init__.py": "", f"{package}/commands.py": COMMANDS, f"{package}/plugin.py": plugin}
    return install_plugin(folder / "site", f"{package}-plugin", files, plugins={package: f"{package}.plugin"})


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder / "site"), "DRUPE_HOME": str(folder / "home")}


def drupe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(arguments, env=environment(folder), cwd=folder)


def cold(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user starts it, in a Python of its own."""
    command = [sys.executable, "-m", "drupe", *arguments]
    return subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=60)


def test_help_lists_every_command_and_says_what_it_does(tmp_path: Path) -> None:
    shown = cold(tmp_path, "--help").stdout
    listed = {line.split()[0] for line in shown.partition("Commands:")[2].splitlines() if line.strip()}
    assert {name for name in _COMMANDS if name in listed} == set(_COMMANDS)


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "Usage: drupe" in capsys.readouterr().out


def test_version(tmp_path: Path) -> None:
    assert cold(tmp_path, "--version").stdout == f"drupe {__version__}\n"


def test_an_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    done = drupe(tmp_path, "pases")
    assert done.returncode == 2
    assert "no command 'pases'; did you mean 'passes'?" in done.stderr


def test_a_command_of_olive_says_what_takes_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    from drupe.core.cli import main

    assert main(["finetune", "--method", "qlora", "-m", "model"]) == 2
    message = capsys.readouterr().err
    assert "no command 'finetune'; what takes its place: a workflow with LoRA or QLoRA" in message
    assert "`olive finetune … --dry_run` writes its own as config.json, which drupe run takes" in message
    assert main(["shared-cache"]) == 2
    assert "--dry_run" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("config", 2, "error: 2 things are wrong\n  fault: a.b: 3; expected a text\n  needs: c: nothing\n"),
        ("host", 1, "error: the board is gone\nthe last lines of its log:\n  | line 1\n  | line 2\n"),
        ("pass", 1, "error: the pass broke\n"),
        ("goals", 3, "error: nothing met the goals\n"),
        ("interrupt", 130, "\ninterrupted\n"),
        ("exit", 7, ""),
    ],
)
def test_an_error_is_one_message_and_an_exit_code(tmp_path: Path, how: str, code: int, told: str) -> None:
    install(tmp_path)
    done = cold(tmp_path, "fail", how)
    assert (done.returncode, done.stderr) == (code, told)


def test_an_unexpected_error_is_one_line_that_says_where_the_traceback_is(tmp_path: Path) -> None:
    install(tmp_path)
    done = drupe(tmp_path, "fail", "bug")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: unexpected RuntimeError: two; ")
    written = Path(line.rpartition(" ")[2])
    assert written.is_relative_to(tmp_path / "home" / "logs")
    assert "raise RuntimeError" in written.read_text()


def test_an_unexpected_error_is_told_even_where_nothing_can_be_written(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "home").write_text("a file")
    done = drupe(tmp_path, "fail", "bug")
    assert done.returncode == 1
    assert "can't be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    install(tmp_path)
    command = [sys.executable, "-m", "drupe", "fail", "much"]
    with subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_name_that_drupe_has_needs_the_distribution(tmp_path: Path) -> None:
    install(tmp_path, name="passes")
    assert "failing-plugin:passes" in drupe(tmp_path, "--help").stdout
    assert drupe(tmp_path, "passes").stdout.startswith("pass ")
    assert drupe(tmp_path, "failing-plugin:passes", "exit").returncode == 7


def test_a_name_that_two_plugins_have_needs_the_distribution(tmp_path: Path) -> None:
    install(tmp_path)
    install(tmp_path, package="other")
    assert drupe(tmp_path, "fail", "exit").returncode == 2
    assert drupe(tmp_path, "other-plugin:fail", "exit").returncode == 7


def test_a_command_that_is_none_is_the_plugins_fault(tmp_path: Path) -> None:
    install(tmp_path, target="no_command")
    done = drupe(tmp_path, "fail", "exit")
    assert done.returncode == 2
    assert "failing-plugin" in done.stderr


def test_a_broken_policy_leaves_drupes_own_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("alow: []")
    monkeypatch.setenv("DRUPE_POLICY", str(policy))
    done = drupe(tmp_path, "--help")
    assert done.returncode == 0
    assert "validate" in done.stdout
    assert "unknown key 'alow'" in done.stderr
    assert drupe(tmp_path, "passes").returncode == 2


def test_ctrl_c_while_it_starts_leaves_no_traceback(tmp_path: Path) -> None:
    install(tmp_path)
    source = tmp_path / "site" / "failing" / "plugin.py"
    source.write_text("import time\nprint('loading', flush=True)\ntime.sleep(30)\n")
    command = [sys.executable, "-m", "drupe", "passes"]
    # Started in the background of a script, the tests themselves, and so their children, would ignore the signal.
    with subprocess.Popen(
        command,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "\ninterrupted\n"
    assert process.returncode == 130


def test_ctrl_c_while_it_is_imported_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(
        "import sys, time\nprint('loading', file=sys.stderr, flush=True)\ntime.sleep(30)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "drupe"],
        env={**environment(tmp_path), "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130

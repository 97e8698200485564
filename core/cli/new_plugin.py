"""`drupe new-plugin`: a ready package of a pass, made from the template that Drupe's own tests run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click

__all__ = ["new_plugin"]

_SUFFIXES = (".py", ".toml", ".md")


@click.command("new-plugin")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", help="The distribution's name; default: that of the folder.")
@click.option("--package", help="The package to import; default: made from the name.")
@click.option("--pass", "pass_name", help="The name of its pass; default: made from the name.")
def new_plugin(folder: Path, name: str | None, package: str | None, pass_name: str | None) -> None:
    """Write a plugin package into DIR: a pass that works, tests, and pyproject.toml.

    On a terminal it asks for what no option says.
    """
    name = name or _asked("Name of the distribution", folder.resolve().name.lower().replace("_", "-"))
    package = package or _asked("Package", re.sub(r"[-.]+", "_", name).lower())
    short = package.removeprefix("drupe_").removesuffix("_drupe") or package
    pass_name = pass_name or _asked("Name of its pass", "".join(part.capitalize() for part in short.split("_")))
    _check(folder, name, package, pass_name)
    try:
        written = _write(folder, name, package, short, pass_name)
    except OSError as error:
        from drupe.core.errors import ConfigError

        raise ConfigError(f"{folder} can't be written: {error.strerror}; name another DIR") from error
    for path in written:
        click.echo(f"  {path}")
    click.echo(
        f"\n{pass_name} is ready in {folder}. Next:\n"
        f"  pip install -e {shlex.quote(f'{folder}[test]')}\n"
        f"  pytest {shlex.quote(str(folder))}\n"
        f"  drupe passes {pass_name}"
    )


def _asked(question: str, default: str) -> str:
    return str(click.prompt(question, default=default)) if sys.stdin.isatty() else default


def _check(folder: Path, name: str, package: str, pass_name: str) -> None:
    from drupe.core.errors import ConfigError, Fault

    faults = []
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        faults.append(Fault("DIR", f"{folder} is there and not empty", "a new folder, or an empty one"))
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        faults.append(Fault("--name", repr(name), "a distribution's name: letters, digits, '-', '_', '.'"))
    if not package.isidentifier():
        faults.append(Fault("--package", repr(package), "a Python identifier"))
    elif package == "drupe":
        faults.append(Fault("--package", repr(package), "a name of your own"))
    if not pass_name.isidentifier():
        faults.append(Fault("--pass", repr(pass_name), "a Python identifier, as CamelCase"))
    else:
        from drupe.core.registry import Registry

        taken = [e for e in Registry.discover().of("drupe_passes") if e.spec.name.lower() == pass_name.lower()]
        if taken:
            faults.append(Fault("--pass", repr(pass_name), "a name of your own", f"{taken[0].plugin} has that one"))
    if faults:
        raise ConfigError(faults=faults)


def _template() -> Path:
    """The template's folder: inside an installed package, or in the checkout of an editable install."""
    here = Path(__file__).resolve()
    packaged = here.parents[1] / "plugin_template"
    return packaged if packaged.is_dir() else here.parents[2] / "contrib" / "plugin-template"


def _write(folder: Path, name: str, package: str, short: str, pass_name: str) -> list[Path]:
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", pass_name).lower()
    module = f"{module}_pass" if module == "plugin" else module
    words = {
        "drupe-example": name,
        "drupe_example": package,
        "example =": f"{short} =",
        "ClipWeights": pass_name,
        "clip_weights": module,
    }
    template = _template()
    written = []
    for source in sorted(template.rglob("*")):
        inside = source.relative_to(template)
        if not source.is_file() or source.suffix not in _SUFFIXES or _is_hidden(inside):
            continue
        target = folder / _replaced(inside.as_posix(), words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_replaced(source.read_text(encoding="utf-8"), words), encoding="utf-8")
        written.append(target)
    return written


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__py", "build", "dist")) or part.endswith(".egg-info") for part in path.parts)


def _replaced(text: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)
    return text

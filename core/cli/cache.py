"""`drupe cache`: look after the store."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from drupe.core.store import Store
    from drupe.core.store.upstream import Upstream

__all__ = ["cache"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.group()
def cache() -> None:
    """Look after the store: the folder or URL that a workflow names as cache_dir."""


def _open(place: str) -> Store | Upstream:
    from drupe.core.errors import ConfigError
    from drupe.core.store import Store

    if "://" in place:
        from drupe.core.store.upstream import Upstream

        return Upstream(place)
    folder = Path(place)
    if not (folder / "blobs").is_dir():
        raise ConfigError(f"{folder} is no store; name the cache_dir of a workflow")
    return Store(folder)


_STORE = click.argument("store", default="cache")


@cache.command("ls")
@_STORE
def list_steps(store: str) -> None:
    """List the steps that STORE holds, the most recently used last."""
    import time

    opened = _open(store)
    total, sizes = 0, opened.sizes()
    for record in sorted(opened.records(), key=lambda r: r["used"]):
        size = sum(sizes.get(digest, 0) for digest in (record.get("model") or {}).get("files", {}).values())
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["used"]))
        click.echo(f"{record['key'][:16]}  {used}  {record['seconds']:8.1f} s  {size / 1e6:9.1f} MB  {record['name']}")
        total += 1
    click.echo(f"{total} steps, {sum(sizes.values()) / 1e6:.1f} MB of files")


@cache.command()
@_STORE
@click.option("--max-size", help="Keep at most so much, the most recently used first: 500MB, 20GB.")
@click.option("--older-than", help="Remove what was not used for so long: 12h, 30d.")
def gc(store: str, max_size: str | None, older_than: str | None) -> None:
    """Remove steps from STORE, and files that no step refers to."""
    most = _parse(max_size, _UNITS, "--max-size", "20GB")
    done = _open(store).gc(max_bytes=most, older_than=_parse(older_than, _SPANS, "--older-than", "30d"))
    click.echo(f"removed {done.records} steps and {done.blobs} files, {done.freed / 1e6:.1f} MB")
    if most is not None and done.left > most:
        stays = "what was written within a day" if "://" in store else "what a running driver may use"
        click.echo(f"{done.left / 1e6:.1f} MB are left, more than {max_size}: {stays} stays")


@cache.command()
@click.argument("key")
@_STORE
def why(key: str, store: str) -> None:
    """Show what the step KEY (or the beginning of a key) was made from."""
    import json

    from drupe.core.errors import ConfigError

    found = [record for record in _open(store).records() if record["key"].startswith(key)]
    if len(found) != 1:
        count = f"{len(found)} steps of {store} have" if found else f"no step of {store} has"
        raise ConfigError(f"{count} a key that begins with {key}; see drupe cache ls {shlex.quote(store)}")
    record = {k: v for k, v in found[0].items() if k not in ("report", "measurement")}
    click.echo(json.dumps(record, indent=2, ensure_ascii=False))


@cache.command()
@_STORE
def verify(store: str) -> None:
    """Hash every file of STORE in full; damaged ones are removed, so that their steps run again. Exit code 1 if any."""
    wrong = _open(store).verify()
    for digest in wrong:
        click.echo(f"damaged, removed: {digest}")
    click.echo("every file holds what its name says" if not wrong else f"{len(wrong)} files were damaged")
    sys.exit(1 if wrong else 0)


def _parse(text: str | None, units: dict[str, int], option: str, example: str) -> int | None:
    from drupe.core.errors import ConfigError

    if text is None:
        return None
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text[len(number) :]
    factor = next((value for name, value in units.items() if name.lower() == unit.lower()), None)
    try:
        if factor is None:
            raise ValueError
        return int(float(number) * factor)
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not understood; write a number and one of {', '.join(units)}, such as "
                          f"{example}") from None  # fmt: skip

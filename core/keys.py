"""Step keys: a digest of everything that can change a step's result.

Pass name, who provides it and in which version (an editable install adds a digest of its source), the pass's own
version and fingerprint, its config after defaults, the input model, the identity of the data and files it refers to,
the versions of its key packages where it runs, the accelerator where the spec says that it matters, and the seed.
Secrets never enter: a SecretRef field holds the name of an environment variable, and even that name is left out.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from drupe.core.accelerators import Accelerator
from drupe.core.config import references
from drupe.core.digests import digest_of, file_digest
from drupe.core.errors import ConfigError
from drupe.core.registry import Registered
from drupe.core.script_files import script_files

__all__ = ["config_identity", "file_identity", "provider_identity", "step_key"]


def step_key(
    kind: str,
    entry: Registered,
    *,
    version: Any,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    references: Mapping[str, Any],
    packages: Mapping[str, str],
    accelerator: Accelerator | None,
    seed: int,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Return the sha256 that names a step's result.

    inputs: role → model digest. references: field → identity of what it refers to. packages: key package → version on
    the host that will run it.
    """
    return digest_of(
        {
            "kind": kind,
            "subject": entry.spec.name,
            "provider": provider_identity(entry.plugin.distribution, entry.plugin.version),
            "version": version,
            "config": dict(config),
            "inputs": dict(inputs),
            "references": dict(references),
            "packages": dict(packages),
            "accelerator": accelerator.to_json() if accelerator else None,
            "seed": seed,
            "extra": dict(extra or {}),
        }
    )


@functools.cache
def provider_identity(distribution: str, version: str) -> str:
    """Return "name version", with a digest of the source where the distribution is an editable install."""
    try:
        dist = importlib.metadata.distribution(distribution)
        origin = json.loads(dist.read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return f"{distribution} {version}"
    if not origin.get("dir_info", {}).get("editable"):
        return f"{distribution} {version}"
    roots = {point.value.split(".")[0] for point in dist.entry_points if point.group == "drupe"}
    return f"{distribution} {version} source {_source_digest(tuple(sorted(roots)))}"


def _source_digest(packages: tuple[str, ...]) -> str:
    listing: dict[str, str] = {}
    for package in packages:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            # The folder's links are followed: an editable checkout may lay its packages out through them.
            stack = [Path(location)]
            while stack:
                folder = stack.pop()
                for path in folder.iterdir():
                    if path.is_dir() and path.name != "__pycache__":
                        stack.append(path)
                    elif path.suffix in (".py", ".toml"):
                        listing[path.relative_to(location).as_posix()] = file_digest(path)
    return digest_of(listing)[:32]


def config_identity(
    config: BaseModel,
    *,
    data: Callable[[str], Any],
    file: Callable[[Path], Any],
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a config as key material: (plain values, identities of what the reference fields refer to).

    data: name of a data config → its identity. file: path → its identity. Secret fields are left out of both.
    """
    values = config.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, what in references(type(config)).items():
        value = values.pop(name, None)
        if value is None or what == "secret":
            continue
        resolve = data if what == "data" else lambda item: file(folder / Path(item).expanduser())
        found[name] = [resolve(item) for item in value] if isinstance(value, list) else resolve(value)
    return values, found


def file_identity(path: Path, digest: Callable[[Path], str]) -> Any:
    """Return the digest of a file, or {relative path: digest} of a folder. Raises ConfigError when it is absent.

    A script that imports from its own folder counts with what it imports.
    """
    if path.is_file():
        first, *others = script_files(path)
        return {p.relative_to(path.parent).as_posix(): digest(p) for p in (first, *others)} if others else digest(path)
    if path.is_dir():
        return {p.relative_to(path).as_posix(): digest(p) for p in sorted(path.rglob("*")) if p.is_file()}
    raise ConfigError(f"{path} does not exist")

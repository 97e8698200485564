"""Looks assets up: environments, models, data, of a workspace or a registry, by version or by label."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Any, Literal

from drupe.core.errors import HostError
from drupe.hosts.azureml.client import Absent, Workspace

__all__ = ["AssetKind", "asset"]

AssetKind = Literal["environment", "model", "data"]
_SHOWN = 5
_CALLED = {"environment": "the environment", "model": "the model", "data": "the data asset"}


def asset(
    workspace: Workspace, kind: AssetKind, registry: str | None, name: str, version: str | None, label: str | None
) -> Any:
    """Return an asset as the library has it, with its version. registry: None for the workspace.

    Azure ML's library knows one label, latest: the version that was registered last and is not archived. Raises
    HostError; Absent where there is no such asset, version or label.
    """
    where = f"the registry {registry}" if registry else "the workspace"
    called = f"{_CALLED[kind]} {name}{f':{version}' if version else f'@{label}'}"

    def operations() -> Any:
        client = workspace.client(registry)
        return {"environment": client.environments, "model": client.models, "data": client.data}[kind]

    what = f"looking for {called} in {where}"
    try:
        return workspace.ask(what, lambda: operations().get(name, version=version, label=label))
    except Absent as error:
        if label is None or label == "latest":
            raise
        versions: list[str] = []
        with suppress(HostError):
            versions = workspace.ask(
                what, lambda: [str(one.version) for one in islice(operations().list(name=name), _SHOWN)]
            )
        if not versions:
            raise Absent(f"{what}: {where} has nothing of that name") from error
        shown = ", ".join(versions)
        raise Absent(
            f"{what}: there is no such label; expected latest, the only one that Azure ML resolves, "
            f"or a version instead of a label ({shown})"
        ) from error

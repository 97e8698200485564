"""The build context of an environment: a folder with a Dockerfile, sent to the workspace's own blob store.

Azure ML's library would send it as well, but waits for ever where one of the files can't be sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from drupe.core.errors import HostError
from drupe.core.stat_cache import cached_digest
from drupe.hosts.azureml.client import Workspace
from drupe.hosts.azureml.storage import Container, open_datastore

__all__ = ["check_recipe", "context_files", "file_digests", "send_context"]

_RECIPE = re.compile(r"^[^.].*docker|^docker(?!-compose|ignore)|^containerfile", re.IGNORECASE)


def check_recipe(folder: Path, recipe: str) -> None:
    """Raise HostError where a build context has no Dockerfile. recipe: its path in the folder."""
    if not folder.is_dir():
        raise HostError(f"{folder} is no folder; expected the folder that holds {recipe}", retry=False)
    if not (folder / recipe).is_file():
        there = sorted(path.name for path in folder.iterdir() if _RECIPE.search(path.name) and path.is_file())
        hint = (
            f"it holds {', '.join(there)}: name it as dockerfile" if there else "put it there, or name it as dockerfile"
        )
        raise HostError(f"{folder} has no {recipe}; {hint}", retry=False)


def context_files(folder: Path, recipe: str) -> dict[str, Path]:
    """Return the files of a build context by their paths in it, hidden ones too: a .dockerignore changes the image.

    What .amlignore (or else .gitignore) names stays behind, as with Azure ML's own commands. Raises HostError where
    there is no Dockerfile, or it would stay behind.
    """
    check_recipe(folder, recipe)
    from azure.ai.ml._utils._asset_utils import get_ignore_file, get_upload_files_from_folder

    ignored = get_ignore_file(folder)
    found = {str(name): Path(path) for path, name in get_upload_files_from_folder(folder, ignore_file=ignored)}
    if recipe not in found:
        which = ".amlignore" if (folder / ".amlignore").exists() else ".gitignore"
        raise HostError(f"{folder}: {which} leaves {recipe} out, so that no image can be built", retry=False)
    return dict(sorted(found.items()))


def file_digests(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the digests of files by their names. Raises HostError."""
    found = {}
    for name, path in files.items():
        try:
            found[name] = cached_digest(path)
        except OSError as error:
            message = f"{name} of the build context can't be read: {error.strerror} ({error.filename})"
            raise HostError(message, retry=False) from error
    return found


def send_context(workspace: Workspace, files: Mapping[str, Path], place: str) -> str:
    """Send the files below a place of the workspace's blob store and return its address. Raises HostError."""
    store = open_datastore(workspace)
    if not isinstance(store, Container):
        raise HostError(f"{store.where} is a file share; build contexts need a blob container", retry=False)
    for name, path in files.items():
        store.put(f"{place}/{name}", path)
    return f"{store.address(place)}/"

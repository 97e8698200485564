"""A datastore of a workspace: blob containers, Data Lake Gen2 (through its blob endpoint), file shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from drupe.core.errors import HostError
from drupe.hosts.azureml.client import Absent, Workspace

__all__ = ["Container", "Item", "Share", "Store", "open_datastore"]

T = TypeVar("T")
_BLOCK = 16 << 20
_PIECE = 4 << 20


@dataclass(frozen=True)
class Item:
    """A file of a datastore. mark: changes whenever the file does."""

    name: str
    size: int
    mark: str


class Store:
    """What datastores of every kind can do. Every method raises HostError."""

    def __init__(self, workspace: Workspace, name: str, opened: Callable[[], Any]) -> None:
        """opened: gives the library's client, a new one after a token ran out."""
        self.workspace = workspace
        self.name = name
        self.where = f"the datastore {name}"
        self._opened = opened

    def find(self, name: str) -> Item | None:
        """Return the file of that name, or None."""
        raise NotImplementedError

    def items(self, prefix: str) -> list[Item]:
        """Return the files below a folder, however deep."""
        raise NotImplementedError

    def get(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from an offset on."""
        raise NotImplementedError

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        # The storage libraries repeat single pieces of a file, so that a break costs no more than one.
        return self.workspace.ask(what, call, once=True)

    def download(self, name: str, target: Path) -> None:
        """Write a file to `target`."""

        def fetch() -> None:
            with target.open("wb") as handle:
                for piece in self.get(name):
                    handle.write(piece)

        target.parent.mkdir(parents=True, exist_ok=True)
        self._ask(f"downloading {name} from {self.where}", fetch)


class Container(Store):
    """A blob container."""

    def find(self, name: str) -> Item | None:
        """See Store.find."""
        try:
            found = self._ask(
                f"looking for {name} in {self.where}",
                lambda: self._opened().get_blob_client(name).get_blob_properties(),
            )
        except Absent:
            return None
        return Item(name, int(found.size), str(found.etag))

    def items(self, prefix: str) -> list[Item]:
        """See Store.items."""
        folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

        def listed() -> list[Item]:
            found = []
            for blob in self._opened().list_blobs(name_starts_with=folder):
                # A Data Lake lists its folders as well.
                if (blob.get("metadata") or {}).get("hdi_isfolder") != "true":
                    md5 = blob.content_settings.content_md5
                    found.append(Item(blob.name, int(blob.size), bytes(md5).hex() if md5 else str(blob.etag)))
            return found

        return self._ask(f"listing {folder or 'the files'} in {self.where}", listed)

    def get(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """See Store.get."""
        client = self._opened().get_blob_client(name)
        yield from client.download_blob(offset=offset, max_concurrency=1).chunks()

    def address(self, name: str) -> str:
        """Return the address of a file or folder, without any signature."""
        return f"{str(self._opened().url).partition('?')[0].rstrip('/')}/{name}"

    def put(self, name: str, path: Path) -> None:
        """Write a file."""

        def send() -> None:
            with path.open("rb") as handle:
                self._opened().upload_blob(name, handle, overwrite=True, max_concurrency=4)

        self._ask(f"uploading {path.name} to {self.where}", send)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self._ask(f"uploading {name} to {self.where}", lambda: self._opened().upload_blob(name, data, overwrite=True))

    def read(self, name: str) -> bytes | None:
        """Return a small file's bytes, or None when it is not there."""
        try:
            return self._ask(f"reading {name} from {self.where}", lambda: b"".join(self.get(name)))
        except Absent:
            return None

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(Absent):
            self._ask(f"removing {name} from {self.where}", lambda: self._opened().delete_blob(name))


class Share(Store):
    """A file share."""

    def find(self, name: str) -> Item | None:
        """See Store.find."""
        try:
            found = self._ask(
                f"looking for {name} in {self.where}",
                lambda: self._opened().get_file_client(name).get_file_properties(),
            )
        except Absent:
            return None
        return Item(name, int(found.size), str(found.etag))

    def items(self, prefix: str) -> list[Item]:
        """See Store.items."""

        def walk(folder: str) -> Iterator[Item]:
            client = self._opened()
            for entry in client.list_directories_and_files(folder):
                name = f"{folder}/{entry['name']}".lstrip("/")
                if entry["is_directory"]:
                    yield from walk(name)
                    continue
                found = client.get_file_client(name).get_file_properties()
                yield Item(name, int(found.size), str(found.etag))

        try:
            return self._ask(f"listing {prefix} in {self.where}", lambda: list(walk(prefix.strip("/"))))
        except Absent:
            return []

    def get(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """See Store.get."""
        yield from self._opened().get_file_client(name).download_file(offset=offset).chunks()


def open_datastore(workspace: Workspace, name: str | None = None) -> Store:
    """Return a datastore by its name; None means the workspace's default. Raises HostError."""
    what = f"opening the datastore {name}" if name else "opening the workspace's default datastore"

    def look() -> Any:
        stores = workspace.client().datastores
        if name is None:
            return stores.get_default(include_secrets=True)
        return stores.get(name, include_secrets=True)

    found = workspace.ask(what, look)
    kind = str(getattr(found.type, "value", found.type)).lower()
    endpoint = found.endpoint or "core.windows.net"
    address = f"{found.protocol or 'https'}://{found.account_name}"
    secret = _secret(found)
    options = _options(workspace)

    def credential() -> Any:
        # Without a key of its own the datastore asks who is there.
        return secret or workspace.credential

    if kind in ("azure_blob", "azureblob", "azure_data_lake_gen2", "azuredatalakegen2"):
        box = getattr(found, "container_name", None) or found.filesystem

        def blobs() -> Any:
            from azure.storage.blob import ContainerClient

            return ContainerClient(f"{address}.blob.{endpoint}", box, credential=credential(), **options)

        return Container(workspace, found.name, _kept(workspace, blobs))
    if kind in ("azure_file", "azurefile"):

        def files() -> Any:
            from azure.storage.fileshare import ShareClient

            own = {"token_intent": "backup"} if not secret else {}
            return ShareClient(
                f"{address}.file.{endpoint}",
                found.file_share_name,
                credential=credential(),
                **own,
                **_options(workspace),
            )

        return Share(workspace, found.name, _kept(workspace, files))
    raise HostError(
        f"the datastore {found.name} is of type {kind}; expected a blob container, Data Lake Gen2 or a file share",
        retry=False,
    )


def _kept(workspace: Workspace, make: Callable[[], Any]) -> Callable[[], Any]:
    """Return what makes a client once for as long as the credential is the same."""
    known: list[Any] = [None, None]

    def opened() -> Any:
        credential = workspace.credential
        if known[0] is not credential:
            known[:] = [credential, make()]
        return known[1]

    return opened


def _secret(datastore: Any) -> Any:
    credentials = datastore.credentials
    return getattr(credentials, "account_key", None) or getattr(credentials, "sas_token", None) or None


def _options(workspace: Workspace) -> dict[str, Any]:
    config = workspace.config
    return {
        "retry_total": config.max_operation_retries,
        "initial_backoff": config.operation_retry_interval,
        "increment_base": min(2, config.operation_retry_interval),
        "random_jitter_range": 0,
        "read_timeout": config.read_timeout,
        "max_single_put_size": _BLOCK,
        "max_block_size": _BLOCK,
        "max_single_get_size": _PIECE,
        "max_chunk_get_size": _PIECE,
    }

"""What a job runs on its node: `python -m drupe.hosts.azureml.node ROOT WHAT`.

ROOT is the mounted folder of the datastore. WHAT is jobs/NAME, whose request.json says what to do, or facts/DIGEST.
What the job needs is copied and hashed, run by the worker, and what it made is written back under its digest. Log and
events go to stdout, which the service keeps and the driver follows.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from drupe.core.digests import file_digest
from drupe.core.errors import DrupeError, HostError, StoreError
from drupe.core.host_faults import fault_data
from drupe.core.job import read_result
from drupe.hosts.azureml.protocol import SCHEMA, blob_name, event_line

__all__ = ["main"]

_POLL_SECONDS = 0.3
_CHUNK = 8 << 20
_EXIT = {"done": 0, "failed": 1, "interrupted": 130}
_HIDDEN = "[secret]"


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked. Exit codes: 0 done, 1 the work failed, 70 the machine failed it, 130 interrupted."""
    root, what = sys.argv[1:] if arguments is None else arguments
    if what.startswith("facts/"):
        from drupe.hosts.site import facts

        _write(Path(root) / f"{what}.json", json.dumps({"schema": SCHEMA, **facts()}))
        return 0
    return _Node(Path(root), Path(root) / what).run()


class _Node:
    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self._stopped = threading.Event()
        self._secrets: list[str] = []
        self._print = threading.Lock()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopped.set())
        try:
            request = json.loads((self._folder / "request.json").read_text(encoding="utf-8"))
            if request["schema"] != SCHEMA:
                message = f"the driver speaks schema {request['schema']} and this node {SCHEMA}; install the same drupe"
                raise HostError(message, retry=False)
            answer, code = self._work(request)
        except _Damaged as error:
            answer, code = {"fault": fault_data(HostError(str(error))), "damaged": error.digests}, 70
        except (DrupeError, OSError, MemoryError, ValueError, KeyError) as error:
            answer, code = {"fault": fault_data(error)}, 70
        text = json.dumps({"schema": SCHEMA, **answer}, ensure_ascii=False)
        _write(self._folder / "answer.json", self._clean(text))
        return code

    def _work(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        from drupe.hosts.site import Site

        options = dict(request["options"])
        if request.get("token_from"):
            from drupe.hosts.azureml.vault import hub_token

            token = hub_token(**request["token_from"])
            self._secrets.append(token)
            options["env"] = {**options["env"], "HF_TOKEN": token}
        # A node may be used again, and then has some of the files still.
        site = Site(Path(tempfile.gettempdir()) / f"drupe-{os.getuid()}")
        try:
            self._bring(site, request["needs"])
            job = site.prepare(request["job"], request["files"])
            self._share_checkpoint(job, request["job"]["key"])
            with self._log_of(job):
                result = site.run(job, options, self._tell, self._stopped.is_set)
            made = site.made(job, read_result(job) or result)
            for digest in made.values():
                self._tell({"event": "state", "state": "keeping", "bytes": site.path(digest).stat().st_size})
                self._keep(site.path(digest), digest)
            return {"result": result, "made": made}, _EXIT[result["status"]]
        finally:
            site.close()

    def _bring(self, site: Any, needs: list[str]) -> None:
        damaged = []
        for digest in site.missing(needs):
            part = site.part(digest)
            try:
                _copy(self._root / blob_name(digest), part)
                site.keep(digest, part)
            except FileNotFoundError:
                damaged.append(digest)
            except StoreError as error:
                if "damaged" not in str(error):
                    raise
                damaged.append(digest)
        if damaged:
            raise _Damaged(damaged)

    def _keep(self, source: Path, digest: str) -> None:
        target = self._root / blob_name(digest)
        if target.exists() and target.stat().st_size == source.stat().st_size:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(source, target)
        if file_digest(target) != digest:
            target.unlink(missing_ok=True)
            raise HostError(f"the file {digest[:12]} could not be written to the datastore whole")

    def _share_checkpoint(self, job: Path, key: str) -> None:
        """Let checkpoints outlive this node."""
        shared = self._root / "checkpoints" / key
        shared.mkdir(parents=True, exist_ok=True)
        (job / "checkpoint").unlink()
        (job / "checkpoint").symlink_to(shared, target_is_directory=True)

    @contextmanager
    def _log_of(self, job: Path) -> Iterator[None]:
        """Print a job's log as it grows."""
        ended = threading.Event()

        def follow() -> None:
            read = 0
            while True:
                last = ended.is_set()
                with suppress(OSError), (job / "log.txt").open("rb") as handle:
                    handle.seek(read)
                    data = handle.read()
                    whole = data if last else data[: data.rfind(b"\n") + 1]
                    read += len(whole)
                    if whole:
                        self._say(whole.decode("utf-8", errors="replace").rstrip("\n"))
                if last:
                    return
                ended.wait(_POLL_SECONDS)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(10)

    def _tell(self, event: Mapping[str, Any]) -> None:
        self._say(event_line(event))

    def _say(self, text: str) -> None:
        with self._print:
            print(self._clean(text), flush=True)  # noqa: T201

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text


class _Damaged(Exception):
    def __init__(self, digests: list[str]) -> None:
        self.digests = digests
        named = ", ".join(digest[:12] for digest in digests)
        super().__init__(f"files are not in the datastore as they should be: {named}; they are sent again")


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

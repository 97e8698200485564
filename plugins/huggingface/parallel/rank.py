"""The processes that run ranks: one that imports the libraries, and forks of it, a rank each.

`python -m drupe.plugins.huggingface.parallel.rank FD` serves a socket: for every message, with a socket for each rank,
it forks a process that answers what comes over its socket. Ranks end with whoever asks them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["Rank"]


class Rank:
    """One of several processes that hold a model together. Each of its methods is called in all of them at one time."""

    def __init__(self) -> None:
        self._mesh: Any = None
        self._session: Any = None

    def join(self, rank: int, ranks: int, store: str, device: str, threads: int | None) -> None:
        """Meet the others. store: a path that all see. device: "cpu" or "cuda"."""
        import torch
        import torch.distributed as dist

        self._number = rank
        if device == "cuda":
            torch.cuda.set_device(rank)
        elif "GLOO_SOCKET_IFNAME" not in os.environ and "lo" in {name for _, name in socket.if_nameindex()}:
            # All ranks are on this machine: nobody else need see them, and its name need not be known.
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(max(1, (threads or torch.get_num_threads()) // ranks))
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks
        )
        self._device = f"cuda:{rank}" if device == "cuda" else "cpu"
        self._mesh = dist.init_device_mesh(device, (ranks,))

    def layout(
        self,
        folder: str,
        task: str | None,
        plan: Mapping[str, str] | None,
        divided: Mapping[str, Sequence[str]],
        ranks: int,
    ) -> Any:
        """See network.found_layout."""
        from drupe.plugins.huggingface.parallel.network import found_layout

        return found_layout(Path(folder), task, plan, divided, ranks, self._mesh)

    def open(self, model: Mapping[str, Any], folder: str, options: Mapping[str, Any]) -> int:
        """Load this rank's pieces. Returns how many bytes they take."""
        from drupe.core.model import Model
        from drupe.plugins.huggingface.loading import load_tokenizer, torch_dtype
        from drupe.plugins.huggingface.parallel.network import load_rank
        from drupe.plugins.huggingface.runtime import TransformersSession, has_tokenizer

        held = Model.from_json(model, Path(folder))
        dtype = torch_dtype(options.get("dtype"))
        loaded = load_rank(
            Path(folder),
            self._number,
            self._mesh,
            device=self._device,
            dtype=None if dtype == "auto" else dtype,
            task=held.attributes.get("task"),
            attn_implementation=options.get("attn_implementation"),
        )
        tokenizer = load_tokenizer(held) if has_tokenizer(held) else None
        self._session = TransformersSession(loaded, tokenizer, self._device, held)
        mine = [p.to_local() if hasattr(p, "to_local") else p for p in loaded.parameters()]
        return sum(tensor.nbytes for tensor in mine)

    def call(self, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Call a method of the session."""
        return getattr(self._session, name)(*arguments, **named)


def answer(connection: Connection) -> None:
    """Answer (method, arguments, whether the result is wanted) by (result, seconds) or (error, None)."""
    from drupe.core.errors import DrupeError

    rank = Rank()
    while True:
        try:
            method, arguments, wanted = connection.recv()
        except (EOFError, OSError):
            return
        started = time.perf_counter()
        try:
            found = getattr(rank, method)(*arguments)
        except DrupeError as error:
            connection.send((str(error), None))
        except Exception as error:
            connection.send((f"{type(error).__name__}: {error}", None))
        else:
            connection.send((found if wanted else None, time.perf_counter() - started))


def serve(control: socket.socket) -> None:
    """Fork ranks until nobody asks any more."""
    import accelerate  # noqa: F401
    import transformers.integrations.tensor_parallel

    # What every architecture is built from is imported with any of them.
    import transformers.models.llama.modeling_llama  # noqa: F401

    import drupe.plugins.huggingface.runtime  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, sockets, _, _ = socket.recv_fds(control, 1, 250)
        if not message:
            return
        for mine in sockets:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                for other in sockets:
                    if other != mine:
                        os.close(other)
                try:
                    answer(Connection(mine))
                finally:
                    os._exit(0)
        for each in sockets:
            os.close(each)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

"""What a disk refuses, told one way: what could not be done, and what to do about a full one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from drupe.core.errors import StoreError

__all__ = ["is_full", "store_errors"]


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what could not be done, and what to do about a full disk."""
    try:
        yield
    except OSError as error:
        hint = ""
        if is_full(error):
            hint = "; make room (drupe cache gc --max-size removes old steps) and run the same command again"
        raise StoreError(f"{what}: {error.strerror or error}{hint}") from error

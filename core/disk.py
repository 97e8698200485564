"""What a disk refuses, told one way: what could not be done, and what to do about a full one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from drupe.core.errors import StoreError

__all__ = ["is_full", "store_errors"]


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left: by its number, or in the words of a library that writes itself.

    What an error was raised from counts as well.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    words = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
    return any(text in str(error) for text in words) or (error.__cause__ is not None and is_full(error.__cause__))


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what could not be done, and what to do about a full disk."""
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno == errno.EROFS:
            hint = "; name a folder that can be written, with --cache-dir or as the workflow's cache_dir"
        if is_full(error):
            hint = "; make room (drupe cache gc --max-size removes old steps) and run the same command again"
        raise StoreError(f"{what}: {error.strerror or error}{hint}") from error

"""The store: content-addressed files and step records, on a local or shared file system, or below a URL."""

from drupe.core.store.collect import Collected
from drupe.core.store.local import Store

__all__ = ["Collected", "Store"]

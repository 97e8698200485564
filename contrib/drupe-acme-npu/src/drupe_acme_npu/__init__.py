"""The (invented) Acme NPU for Drupe."""

__version__ = "0.1.0"

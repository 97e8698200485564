"""Built-in passes, data containers, runtimes, metrics and model sources. They use core's public API only."""

"""TorchAO: what the library torchao quantizes, and how the result is kept."""

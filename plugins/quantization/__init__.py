"""Quantizers of PyTorch decoders: weights in groups of few bits, saved as ModelBuilder reads them."""

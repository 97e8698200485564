"""Quantization-aware training: modules that round while they learn, and the loops that train them."""

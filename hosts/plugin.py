"""Registers the built-in hosts."""

"""Registers the built-ins of this folder."""

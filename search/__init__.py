"""Optuna-driven search under constraints, and its statistics."""

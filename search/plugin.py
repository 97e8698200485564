"""Registers the Optuna study and its commands."""

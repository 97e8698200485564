"""The contract kit: base classes, fixtures and tiny models for plugin authors' tests."""

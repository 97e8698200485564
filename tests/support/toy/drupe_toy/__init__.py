"""A plugin for tests: models are short texts, so that a whole workflow runs in milliseconds."""

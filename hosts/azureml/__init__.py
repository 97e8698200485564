"""Azure Machine Learning: a host, and sources of models and data."""

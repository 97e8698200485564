"""Gives the workflow's `azureml_client` to the references that need one and name none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["with_client"]

_CLIENT = "azureml_client"
_PLACES = ("input_model", "data_configs")
_ADDRESS = "azureml://"


def with_client(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with its client in the references of input model and data: an older file's inner `config`
    is part of the reference, and an address becomes a reference that can hold a client."""
    client = document.get(_CLIENT)
    return {key: _given(value, client) if key in _PLACES else value for key, value in document.items()}


def _given(value: Any, client: Any) -> Any:
    if isinstance(value, str) and value.startswith(_ADDRESS) and isinstance(client, Mapping):
        return {"type": "azureml_uri", "uri": value, _CLIENT: dict(client)}
    if isinstance(value, list):
        return [_given(item, client) for item in value]
    if not isinstance(value, Mapping):
        return value
    if str(value.get("type", "")).lower().startswith("azureml_"):
        inner = value.get("config")
        flat = {key: item for key, item in value.items() if key != "config"} | dict(inner or {})
        if not isinstance(inner, (Mapping, type(None))):
            return value
        # An empty client is what the tutorial leaves for the reader to fill in: the workflow's own is meant.
        return {**flat, _CLIENT: flat.get(_CLIENT) or dict(client)} if isinstance(client, Mapping) else flat
    return {key: _given(item, client) for key, item in value.items()}

"""The contract kit: what a plugin's own tests import, also as `drupe.testing`.

Contract classes hold the tests that every plugin of a kind must pass; an author subclasses one and overrides its
fixtures. The built-ins are tested by the same classes.
"""

# ruff: noqa: E402  (pytest must know of the modules whose asserts it explains before they are imported)
from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("drupe.testing needs pytest; pip install 'drupe[test]'", name="pytest") from error

for _module in ("base", "data", "hosts", "imports", "metrics", "passes", "runtimes"):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")

from drupe.core.testing.base import ConfigContract, Contract
from drupe.core.testing.contexts import GivenData, make_context
from drupe.core.testing.data import DataContract
from drupe.core.testing.hosts import HostContract, JobFolders, contract_site
from drupe.core.testing.imports import assert_light_import, heavy_imports
from drupe.core.testing.metrics import MetricContract
from drupe.core.testing.models import byte_tokenizer, tiny_causal_lm, tiny_encoder, tiny_onnx_cnn, tiny_onnx_mlp
from drupe.core.testing.passes import PassContract
from drupe.core.testing.registries import isolated_registry, register
from drupe.core.testing.runtimes import RuntimeContract
from drupe.core.testing.sites import install_plugin

__all__ = [
    "ConfigContract",
    "Contract",
    "DataContract",
    "GivenData",
    "HostContract",
    "JobFolders",
    "MetricContract",
    "PassContract",
    "RuntimeContract",
    "assert_light_import",
    "byte_tokenizer",
    "contract_site",
    "heavy_imports",
    "install_plugin",
    "isolated_registry",
    "make_context",
    "register",
    "tiny_causal_lm",
    "tiny_encoder",
    "tiny_onnx_cnn",
    "tiny_onnx_mlp",
]

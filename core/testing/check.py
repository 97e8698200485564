"""Runs the contracts on what a plugin contributes, with tiny models where one fits: `drupe plugins check`."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from drupe.core.errors import ConfigError
from drupe.core.guarded_import import shortened
from drupe.core.model import Model
from drupe.core.plugin_check import Finding
from drupe.core.registry import Registered, Registry
from drupe.core.runtimes import Session
from drupe.core.specs import PassSpec, RuntimeSpec
from drupe.core.testing.base import ConfigContract, Contract
from drupe.core.testing.data import DataContract
from drupe.core.testing.metrics import MetricContract
from drupe.core.testing.models import tiny_causal_lm, tiny_onnx_mlp
from drupe.core.testing.passes import PassContract
from drupe.core.testing.runtimes import RuntimeContract

__all__ = ["contract_of", "run_contracts"]

_MODELS = {"onnx": tiny_onnx_mlp, "hf": tiny_causal_lm}
_CONTRACTS: dict[str, type[Contract]] = {
    "drupe_passes": PassContract,
    "drupe_data_containers": DataContract,
    "drupe_runtimes": RuntimeContract,
    "drupe_metrics": MetricContract,
    "drupe_hosts": ConfigContract,
    "drupe_model_kinds": ConfigContract,
}
_MODULE = "from drupe.core.testing.check import generated\n\nglobals().update(generated)\n"

generated: dict[str, type[Contract]] = {}
"""What the test module that is run holds."""


def run_contracts(registry: Registry, entries: Sequence[Registered], *, run: bool) -> list[Finding]:
    """Return a finding per case of each entry's contract. run: also those that run the plugin on a tiny model."""
    collected = _Collected()
    generated.clear()
    for index, entry in enumerate(entries):
        generated[f"Test{index}"] = contract_of(registry, entry, run)
        collected.titles[f"Test{index}"] = f"{entry.hook.removeprefix('drupe_')} {entry.spec.name}"
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        module = Path(folder) / "test_contracts.py"
        module.write_text(_MODULE, encoding="utf-8")
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        options = ["-p", "no:terminal", "-p", "no:cacheprovider", "--rootdir", folder, "-c", "/dev/null"]
        code = pytest.main([*options, f"--basetemp={folder}/tmp", str(module)], plugins=[collected])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not collected.findings:
        collected.findings.append(
            Finding("FAIL", "the contracts", "run", f"could not be run: pytest ended with {code!r}")
        )
    return collected.findings


class _Collected:
    """A pytest plugin that turns reports into findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.titles: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Record the outcome of a case: of its call, or of a setup that kept it from being called."""
        report = yield
        if report.when == "call" or (report.when == "setup" and not report.passed):
            assert item.parent is not None
            title, what = self.titles[item.parent.name], item.name.removeprefix("test_").replace("_", " ")
            if report.passed:
                self.findings.append(Finding("ok", title, what))
            elif report.skipped:
                reason = str(call.excinfo.value) if call.excinfo else ""
                self.findings.append(Finding("not checked", title, what, reason.removeprefix("Skipped: ")))
            elif call.excinfo and call.excinfo.errisinstance(ConfigError):
                # With its defaults alone it can't work on the tiny model, which is no fault.
                self.findings.append(Finding("not checked", title, what, str(call.excinfo.value)))
            else:
                text = str(call.excinfo.value).partition("\nassert ")[0] if call.excinfo else report.longreprtext
                self.findings.append(Finding("FAIL", title, what, shortened(" ".join(text.split()), 400)))
        return report


def contract_of(registry: Registry, entry: Registered, run: bool) -> type[Contract]:
    """Return a class of tests for an entry whose fixtures give a tiny model, or skip where none fits."""
    base = _CONTRACTS.get(entry.hook, Contract)
    members: dict[str, Any] = {
        "hook": entry.hook,
        "name": entry.spec.name,
        "registry": pytest.fixture(lambda self: registry, name="registry"),
        "registered": pytest.fixture(lambda self: entry, name="registered"),
    }
    if issubclass(base, ConfigContract):
        members["config"] = _config()
    if not run:
        # A case that is None is none.
        members |= dict.fromkeys(_cases_that_run(base))
    elif base in (PassContract, RuntimeContract):
        members["model"] = _model(entry)
    if base is RuntimeContract:
        members["batch"] = _batch()
    for name in _UNAVAILABLE.get(base, ()):
        members[name] = _unavailable(name)
    return type(f"Generated{base.__name__}", (base,), members)


_UNAVAILABLE: Mapping[type[Contract], Sequence[str]] = {
    DataContract: ("workflow_dir", "samples"),
    MetricContract: ("rows",),
}
"""Fixtures that only the plugin's author can give."""


def _unavailable(name: str) -> Any:
    @pytest.fixture(name=name)
    def fixture(self: Any) -> None:
        pytest.skip("the plugin's own tests give what this needs")

    return fixture


def _config() -> Any:
    @pytest.fixture(name="config")
    def fixture(self: Any, config_class: type[BaseModel]) -> Any:
        try:
            return config_class.model_validate({})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            pytest.skip(f"its defaults alone are no valid config: {where + ': ' if where else ''}{first['msg']}")

    return fixture


def _cases_that_run(base: type[Contract]) -> list[str]:
    """The cases of a contract that need a model, data or measurements."""
    needed = {"model", "made", "session", "samples", "rows", "told", "batch", "workflow_dir", "request"}
    functions = inspect.getmembers(base, inspect.isfunction)
    return [n for n, f in functions if n.startswith("test_") and needed & set(inspect.signature(f).parameters)]


def _model(entry: Registered) -> Any:
    @pytest.fixture(name="model")
    def fixture(self: Any, tmp_path: Path) -> Model:
        spec = entry.spec
        kinds = spec.accepts if isinstance(spec, PassSpec) else cast(RuntimeSpec, spec).kinds
        for kind, make in _MODELS.items():
            if kind in kinds or not kinds:
                try:
                    return make(tmp_path / "model")
                except ImportError as error:
                    pytest.skip(f"a tiny {kind} model can't be made: {error}")
        pytest.skip(f"there is no tiny model of kind {', '.join(sorted(kinds))}")

    return fixture


def _batch() -> Any:
    @pytest.fixture(name="batch")
    def fixture(self: Any, session: Session) -> Mapping[str, np.ndarray]:
        try:
            shapes = session.input_shapes()
        except NotImplementedError:
            pytest.skip("the session does not tell its input shapes")
        return {
            name: np.ones([2 if isinstance(axis, str) else axis for axis in shape], dtype=np.dtype(dtype))
            for name, (shape, dtype) in shapes.items()
        }

    return fixture

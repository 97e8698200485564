"""What stands behind the mark `real_run`: that the passes that it names ran, and on a real model.

Every call of a pass is noted while tests run: in the test itself or in a fixture that it uses. A model is real when it
comes from a fixture of SOURCES, or from a pass that ran on a real model; weights are known again by their digest.
`noted_from` adds what a workflow ran in other processes, `noted_elsewhere` a pass that a test's own process ran. A
marked test that passes although a named pass did not run, or ran on made-up weights only, fails; where CI is set, a
marked test may not be skipped either.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from drupe.core.digests import file_digest
from drupe.core.model import Model
from drupe.core.passes import Pass
from drupe.core.registry import get_registry

SOURCES = {
    "smollm2_dir", "smollm2_gguf", "smollm2_cut_dir", "minilm_dir", "digits_vit_dir", "digits_resnet_dir",
    "digits_reader_dir", "digits_cnn",
}  # fmt: skip
"""Fixtures that give a folder (or file) with trained weights. A fixture that makes another such model is added here."""


class RealRuns:
    """A pytest plugin; one for a test run. noted: passes by name, and whether one of its runs was on a real model."""

    def __init__(self) -> None:
        self._places: set[Path] = set()
        self._weights: set[str] = set()
        self._digests: dict[Path, str] = {}
        self._fixtures: dict[tuple[str, str], dict[str, bool]] = {}
        self._open: list[dict[str, bool]] = []
        self._depth = 0

    # What runs

    def is_real(self, model: Model) -> bool:
        """Whether the model lies in a place of a source, or has weights that are known to be real."""
        if model.path is None or self.is_real_place(model.path):
            return model.path is not None
        return bool(self._weights & set(_weights(model))) or any(
            self._is_copy(model.path / name, digest) for name, digest in model.files.items() if _holds_weights(name)
        )

    def _is_copy(self, file: Path, digest: str) -> bool:
        """Whether a file of weights is a copy of a source's, as a model that was imported has one."""
        if not file.is_file():
            return False
        size = file.stat().st_size
        for place in self._places:
            for found in (place, *place.rglob("*")):
                if found.is_file() and _holds_weights(found.name) and found.stat().st_size == size:
                    self._digests[found] = self._digests.get(found) or file_digest(found)
                    if self._digests[found] == digest:
                        return True
        return False

    def is_real_place(self, path: Path) -> bool:
        """Whether a file or folder is a source's or lies in one."""
        return any(place == path or place in path.resolve().parents for place in self._places)

    def note(self, name: str, real: bool) -> None:
        """A pass ran, on a real model or not."""
        for noted in self._open:
            noted[name] = noted.get(name, False) or real

    def call(self, original: Any, subject: Pass, model: Model, config: Any, context: Any) -> Model:
        """Call a pass and note it once it kept its promise. One that another pass calls is that one's affair."""
        real = self.is_real(model)
        self._depth += 1
        try:
            result: Model = original(subject, model, config, context)
        finally:
            self._depth -= 1
        if real:
            self._weights.update(_weights(model), _weights(result))
        if self._depth == 0:
            self.note(subject.spec.name, real)
        return result

    # pytest's hooks

    def pytest_configure(self, config: pytest.Config) -> None:
        original = Pass.__call__
        patch = pytest.MonkeyPatch()
        patch.setattr(Pass, "__call__", lambda *given: self.call(original, *given))
        config.add_cleanup(patch.undo)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
        noted: dict[str, bool] = {}
        self._open.append(noted)
        try:
            value = yield
        finally:
            self._open.remove(noted)
        self._fixtures[fixturedef.baseid, fixturedef.argname] = noted
        if fixturedef.argname in SOURCES:
            self._places.add(Path(value).resolve())
        return value

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except pytest.skip.Exception as skipped:
            _refuse(skipped, item)
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        named = _named(item)
        if not named:
            return (yield)
        noted: dict[str, bool] = {}
        self._open.append(noted)
        try:
            value = yield
        except pytest.skip.Exception as skipped:
            _refuse(skipped, item)
            raise
        finally:
            self._open.remove(noted)
        for found in [noted, *self._noted_in_fixtures(item)]:
            for name, real in found.items():
                noted[name] = noted.get(name, False) or real
        if faults := list(faults_of(named, noted)):
            pytest.fail("\n".join(faults), pytrace=False)
        return value

    def _noted_in_fixtures(self, item: pytest.Item) -> list[dict[str, bool]]:
        """What ran in the fixtures that the test used; of those with the same name the nearest one."""
        found = []
        used = item._request.fixturenames if isinstance(item, pytest.Function) else ()
        for name in used:
            bases = [base for base, argname in self._fixtures if argname == name and item.nodeid.startswith(base)]
            if bases:
                found.append(self._fixtures[max(bases, key=len), name])
        return found


_plugin = RealRuns()


def plugin() -> RealRuns:
    """The one of this test run."""
    return _plugin


def faults_of(named: set[str], noted: dict[str, bool]) -> Generator[str]:
    """Say of each pass that a mark names what is wrong with its run."""
    known = {entry.spec.name for entry in get_registry().entries if entry.hook == "drupe_passes"}
    for name in sorted(named):
        if name not in known:
            yield f"the mark real_run names {name!r}, which is no pass"
        elif name not in noted:
            yield f"the mark real_run names {name}, which did not run; these did: {', '.join(sorted(noted)) or 'none'}"
        elif not noted[name]:
            yield (
                f"{name} ran, but on no real model: its input comes from none of {', '.join(sorted(SOURCES))}; "
                f"a fixture that makes another trained model goes into SOURCES of tests/support/real_runs.py"
            )


def noted_from(manifest: Path) -> None:
    """Note the passes of a finished workflow, which ran in processes of their own. manifest: its drupe.json."""
    told = json.loads(manifest.read_text(encoding="utf-8"))
    real = _plugin.is_real_place(Path(told["workflow"]["input_model"]["model_path"]))
    for target in told["targets"].values():
        for candidate in target["candidates"]:
            for step in candidate["chain"]:
                if step["model"] is not None:
                    _plugin.note(step["type"], real)


def noted_elsewhere(name: str, source: Model) -> None:
    """Note a pass that a process of its own ran on a model and finished."""
    _plugin.note(name, _plugin.is_real(source))


def _named(item: pytest.Item) -> set[str]:
    return {name for mark in item.iter_markers("real_run") for name in mark.args}


def _refuse(skipped: pytest.skip.Exception, item: pytest.Item) -> None:
    """Fail a marked test that skips itself, where nobody would see it."""
    if _named(item) and os.environ.get("CI"):
        pytest.fail(f"a pass's run on a real model may not be skipped: {skipped}", pytrace=False)


def _weights(model: Model) -> list[str]:
    return [digest for name, digest in model.files.items() if _holds_weights(name)]


def _holds_weights(name: str) -> bool:
    return Path(name).suffix in {".safetensors", ".onnx", ".data", ".bin", ".pt", ".pth", ".gguf"}

"""How a step's inputs are laid out: hard links, or copies for libraries that refuse those."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.specs import ModelKindSpec
from drupe.core.store import Store
from drupe.testing import tiny_onnx_mlp


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Store, Model]:
    import onnx

    plain = tiny_onnx_mlp(tmp_path / "plain", hidden=64)
    folder = tmp_path / "outputs"
    folder.mkdir()
    proto = onnx.load(plain.folder / "model.onnx")
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    model = Model.from_dir("onnx", folder)
    store = Store(tmp_path / "cache")
    store.publish(model, folder)
    return store, model


def test_copies_can_be_read_where_links_are_refused(stored: tuple[Store, Model], tmp_path: Path) -> None:
    import onnx

    store, model = stored
    copied = store.stage(model, tmp_path / "copied", hard_links=False)
    assert {path.stat().st_nlink for path in copied.folder.iterdir()} == {1}
    onnx.load(copied.folder / "model.onnx")
    linked = store.stage(model, tmp_path / "linked")
    assert {path.stat().st_nlink for path in linked.folder.iterdir()} == {2}
    with pytest.raises(Exception, match="multiple hard links"):
        onnx.load(linked.folder / "model.onnx")


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_changed_input_is_found_either_way(stored: tuple[Store, Model], tmp_path: Path, hard_links: bool) -> None:
    store, model = stored
    staged = store.stage(model, tmp_path / "staged", hard_links=hard_links)
    assert store.verify_inputs(model, staged.folder) == []
    path = staged.folder / "model.onnx.data"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    assert store.verify_inputs(model, staged.folder) == ["model.onnx.data"]


def test_the_kinds_of_onnx_say_that_links_are_refused() -> None:
    registry = Registry.discover({"autoload": False})
    kinds = {e.spec.name: cast(ModelKindSpec, e.spec).hard_links for e in registry.of("drupe_model_kinds")}
    assert (kinds["hf"], kinds["onnx"], kinds["genai"]) == (True, False, False)

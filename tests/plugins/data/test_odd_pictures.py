"""Pictures of odd kinds: as they are looked at, or refused in one message."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError
from tests.plugins.data.conftest import Loaded, write_rows
from tests.plugins.data.test_container import parsed

Load = Callable[..., Loaded]


@pytest.fixture
def pixels(load: Load, tmp_path: Path) -> Callable[..., np.ndarray]:
    """Return what becomes of one picture, (channels, height, width)."""

    def pixels(picture: Any, **options: Any) -> np.ndarray:
        write_rows(tmp_path / "r.jsonl", [{"image": picture, "label": 0}])
        samples, _ = load({"data_files": "r.jsonl", **options}, model=None, type="ImageDataContainer")
        return np.asarray(samples[0].inputs["pixel_values"])

    return pixels


def test_a_picture_of_sixteen_bits_keeps_its_greys(pixels: Callable[..., np.ndarray], tmp_path: Path) -> None:
    from PIL import Image

    greys = np.linspace(0, 65_535, 48).astype(np.uint16).reshape(6, 8)
    Image.fromarray(greys).save(tmp_path / "deep.png")
    found = pixels("deep.png")
    assert found.shape == (3, 6, 8)
    assert np.abs(found - greys / 65_535).max() < 0.003


def test_a_picture_is_turned_as_its_camera_was_held(pixels: Callable[..., np.ndarray], tmp_path: Path) -> None:
    from PIL import Image

    shot = np.zeros((4, 8, 3), np.uint8)
    shot[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(shot).save(tmp_path / "held.png", exif=exif)
    found = pixels("held.png")
    assert found.shape == (3, 8, 4)
    assert found[:, :4].min() == 1.0 and found[:, 4:].max() == 0.0


def test_broken_pictures_are_named(pixels: Callable[..., np.ndarray], tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    packed = io.BytesIO()
    Image.fromarray(noise).save(packed, "PNG")
    (tmp_path / "half.png").write_bytes(packed.getvalue()[: len(packed.getvalue()) // 2])
    with pytest.raises(ConfigError, match=r"row 0: the picture half.png can't be read: image file is truncated"):
        pixels("half.png")
    Image.fromarray(np.random.default_rng(0).random((4, 4)).astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ConfigError, match=r"row 0: a picture of floating-point numbers"):
        pixels("float.tiff")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([[0.25, 0.5], [0.0, 1.0]], "these are fractions up to 1"),
        ([[[1, 2], [3, 4]]] * 3, r"a picture of shape \(3, 2, 2\); expected \(height, width\)"),
        ([["a", "b"]], "expected a picture, found list"),
        ([[1], [2, 3]], "expected a picture, found list"),
        ([[-1, 3]], "between 0 and 255, not at -1"),
    ],
)
def test_arrays_that_are_no_pictures(pixels: Callable[..., np.ndarray], numbers: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pixels(numbers)


def test_normalising_takes_a_number_a_channel(pixels: Callable[..., np.ndarray]) -> None:
    assert pixels([[0, 255]], image_mean=[0.5], image_std=[0.5]).tolist() == [[[-1.0, 1.0]]] * 3
    with pytest.raises(ConfigError, match="image_mean has 2 numbers; the model takes 3 channels"):
        pixels([[0, 255]], image_mean=[0.5, 0.5], image_std=[0.5, 0.5])
    with pytest.raises(ValidationError, match=r"image_std \[0.0\]: expected numbers above 0"):
        parsed(image_mean=[0.5], image_std=[0.0])


def test_no_picture_of_a_folder_is_passed_over(load: Load, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a/1.png", "b/1.JFIF"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "p" / name, format="PNG")
    samples, _ = load({"data_dir": "p"}, model=None, type="ImageDataContainer")
    assert [sample.target for sample in samples] == [0, 1]

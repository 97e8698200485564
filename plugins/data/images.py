"""Image classification data: pictures become pixel values with a target, by the model's own image processor."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.plugins.data.accounting import Accounting
from drupe.plugins.data.classification import Classification
from drupe.plugins.data.options import PreProcess

if TYPE_CHECKING:
    import numpy as np


__all__ = ["ImageClassification", "has_images"]

_COLUMNS = ("image", "img", "pixel_values")


def has_images(columns: Sequence[str], options: PreProcess) -> bool:
    """Whether rows with these columns hold pictures."""
    return options.image_col is not None or any(name in columns for name in _COLUMNS)


class ImageClassification(Classification):
    """Turns rows into samples as the options say.

    inputs: what the processor gives, "pixel_values" (float32, (channels, height, width)) for most models. target: the
    label, int or the text that stands in the data. A picture is a file (path relative to `folder`), its bytes, a PIL
    image, or an array of (height, width) or (height, width, channels) with values from 0 to 255.

    processor: the model's own; None: the picture is resized to image_size (default: the size in `shape`), scaled to
    0…1, and normalised where image_mean and image_std say so.
    """

    def __init__(
        self,
        options: PreProcess,
        processor: Any | None,
        label_ids: Mapping[str, int],
        shape: Mapping[str, Any],
        folder: Path,
    ) -> None:
        super().__init__(options, None, label_ids)
        self._processor = processor
        self._shape = shape
        self._folder = folder

    def _input_columns(self, columns: Sequence[str]) -> list[str]:
        told = self._options.image_col or self._options.input_cols
        names = [told] if isinstance(told, str) else list(told or ())
        names = names or [name for name in _COLUMNS if name in columns][:1]
        if len(names) != 1 or names[0] not in columns:
            what = f"the data has no column {', '.join(map(repr, names))}" if names else "no column is named"
            raise ConfigError(f"image_col: {what}; it has: {', '.join(columns)}")
        return names

    def _sample(
        self, key: str, values: Sequence[Any], target: Any, mapping: Mapping[Any, Any], account: Accounting
    ) -> Sample:
        import numpy as np

        picture = self._picture(values[0], key)
        if self._processor is not None:
            given = self._processor(images=picture, return_tensors="np", **self._told())
            inputs = {name: np.asarray(value)[0] for name, value in given.items()}
        else:
            inputs = {"pixel_values": self._pixels(picture)}
        digest = hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()
        return Sample(key, inputs, self._mapped(target, mapping, key), digest)

    def _picture(self, value: Any, key: str) -> Any:
        from PIL import Image, ImageOps, UnidentifiedImageError

        picture: Any = None
        try:
            picture = self._opened(value, key)
            picture.load()
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            if picture is not None:
                picture.close()
            name = f" {value}" if isinstance(value, str) and value not in str(error) else ""
            raise ConfigError(f"row {int(key)}: the picture{name} can't be read: {error}") from error
        # As it is looked at: a camera writes how it was held beside the pixels.
        picture = ImageOps.exif_transpose(picture)
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(self._channels)
        if mode is None:
            raise ConfigError(f"the model takes pictures of {self._channels} channels; expected 1, 3 or 4")
        picture = _in_eight_bits(picture, key)
        return picture if picture.mode == mode else picture.convert(mode)

    @property
    def _channels(self) -> int:
        return int(self._shape.get("num_channels") or 3)

    def _opened(self, value: Any, key: str) -> Any:
        from PIL import Image

        if isinstance(value, Image.Image):
            return value
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return Image.open(io.BytesIO(value))
        if isinstance(value, str):
            return Image.open(self._folder / Path(value).expanduser())
        return _of_numbers(value, key)

    def _told(self) -> dict[str, Any]:
        """Return the options that go to the processor, and win over its own."""
        options = self._options
        told: dict[str, Any] = {"image_mean": options.image_mean, "image_std": options.image_std}
        if options.image_size is not None:
            height, width = options.image_size
            told["size"] = {"height": height, "width": width}
        return {name: value for name, value in told.items() if value is not None}

    def _pixels(self, picture: Any) -> np.ndarray:
        import numpy as np
        from PIL import Image

        size = self._options.image_size or self._shape.get("image_size")
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else tuple(size)
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(picture, dtype=np.float32)) / 255.0
        if self._options.image_mean is not None:
            self._check_channels()
            pixels = (pixels - np.asarray(self._options.image_mean)) / np.asarray(self._options.image_std)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)

    def _check_channels(self) -> None:
        for name in ("image_mean", "image_std"):
            given = getattr(self._options, name) or ()
            if len(given) not in (1, self._channels):
                raise ConfigError(f"{name} has {len(given)} numbers; the model takes {self._channels} channels")


def _in_eight_bits(picture: Any, key: str) -> Any:
    """Return a picture of 16 bits a pixel as one of 8, which converting by itself would cut off at 255."""
    import numpy as np
    from PIL import Image

    if picture.mode == "F":
        raise ConfigError(f"row {int(key)}: a picture of floating-point numbers; save it with 8 or 16 bits a channel")
    if not picture.mode.startswith("I"):
        return picture
    numbers = np.asarray(picture).astype(np.int64)
    if numbers.min() < 0 or numbers.max() > 65_535:
        raise ConfigError(
            f"row {int(key)}: a picture with numbers up to {numbers.max()}; expected 8 or 16 bits a pixel"
        )
    if picture.mode.startswith("I;16") or numbers.max() > 255:
        numbers = (numbers + 128) // 257
    return Image.fromarray(numbers.astype(np.uint8))


def _of_numbers(value: Any, key: str) -> Any:
    """Return an array as a picture. Raises ConfigError for a shape or numbers that no picture has."""
    import numpy as np
    from PIL import Image

    try:
        numbers = np.asarray(value)
    except ValueError:
        # Lists of unequal lengths.
        numbers = np.asarray(None)
    if numbers.dtype.kind not in "biuf" or numbers.ndim not in (2, 3) or not numbers.size:
        raise ConfigError(f"row {int(key)}: expected a picture, found {type(value).__name__}")
    if numbers.ndim == 3 and numbers.shape[-1] not in (1, 3, 4):
        raise ConfigError(
            f"row {int(key)}: a picture of shape {numbers.shape}; expected (height, width) or (height, width, channels)"
        )
    if not (numbers.min() >= 0 and numbers.max() <= 255):
        beyond = numbers.min() if numbers.min() < 0 else numbers.max()
        raise ConfigError(f"row {int(key)}: a picture's numbers lie between 0 and 255, not at {beyond:g}")
    if numbers.dtype.kind == "f" and not np.array_equal(numbers, np.trunc(numbers)):
        raise ConfigError(
            f"row {int(key)}: a picture's numbers are whole, from 0 to 255; these are fractions up to "
            f"{numbers.max():g}: give them as they are, with skip_pre_process, or scale them"
        )
    return Image.fromarray((numbers.squeeze(-1) if numbers.shape[2:] == (1,) else numbers).astype(np.uint8))

"""Pictures: folders with and without splits, tables, processors, and what can't be read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.data.container import HuggingfaceContainer, HuggingfaceDataConfig
from drupe.plugins.data.plugin import drupe_data_containers
from tests.plugins.data.conftest import Loaded, write_rows

Load = Callable[..., Loaded]
CONTAINER = HuggingfaceContainer(drupe_data_containers()[0])
FOLDER = {"load_dataset_config": {"data_name": "imagefolder", "data_dir": "pictures"}}


def picture(shade: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new("RGB", size, (shade, 0, 255 - shade))


def put(path: Path, shade: int, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(shade, size).save(path)
    return path


def vision_model(folder: Path, processor: dict[str, Any] | None = None, **config: Any) -> Model:
    """A model's folder with nothing but what the preparation of pictures looks at."""
    folder.mkdir()
    told = {"model_type": "vit", "image_size": 4, "num_channels": 3, **config}
    (folder / "config.json").write_text(json.dumps(told))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return Model.from_dir("hf", folder, {"task": "image-classification"})


@pytest.fixture
def vit(tmp_path: Path) -> Model:
    return vision_model(tmp_path / "vit")


def test_a_sub_folder_is_a_class(load: Load, vit: Model, tmp_path: Path) -> None:
    for name, shade in (("dog/b.png", 200), ("cat/a.png", 100), ("dog/a.jpg", 0)):
        put(tmp_path / "pictures" / name, shade)
    samples, report = load(FOLDER, model=vit)
    assert [s.target for s in samples] == [0, 1, 1]
    assert samples[0].inputs["pixel_values"].shape == (3, 4, 4)
    assert samples[0].inputs["pixel_values"][:, 0, 0] == pytest.approx([100 / 255, 0, 155 / 255])
    assert "processor" in report and report["different"] == 3
    by_path, _ = load({"load_dataset_config": {"data_name": "pictures"}}, model=vit)
    assert [s.content_key for s in by_path] == [s.content_key for s in samples]


def test_an_image_container_takes_a_folder_without_more_words(load: Load, vit: Model, tmp_path: Path) -> None:
    put(tmp_path / "pictures" / "dog" / "b.png", 200)
    config = {"load_dataset_config": {"data_dir": "pictures"}, "pre_process_data_config": {"max_samples": 1}}
    (sample,), _ = load(config, model=vit, type="ImageDataContainer")
    assert sample.inputs["pixel_values"].shape == (3, 4, 4)
    named, _ = load({"load_dataset_config": {"data_name": "pictures"}}, model=None, type="ImageDataContainer")
    assert named[0].target == 0


def test_a_class_has_one_number_in_all_splits(load: Load, vit: Model, tmp_path: Path) -> None:
    for name in ("train/ant/a.png", "train/bee/a.png", "val/bee/a.png"):
        put(tmp_path / "pictures" / name, len(name))
    loading = FOLDER["load_dataset_config"]
    samples, _ = load({"load_dataset_config": {**loading, "split": "validation"}}, model=vit)
    assert [s.target for s in samples] == [1]
    (fault,) = CONTAINER.check(
        HuggingfaceDataConfig.model_validate({"load_dataset_config": {**loading, "split": "test"}}), tmp_path
    )
    assert fault.expected == "one of: train, validation"


def test_the_identity_follows_pictures_and_classes(tmp_path: Path) -> None:
    put(tmp_path / "pictures" / "train" / "bee" / "a.png", 1)
    put(tmp_path / "pictures" / "test" / "bee" / "b.png", 2)
    config = HuggingfaceDataConfig.model_validate(FOLDER)
    before = CONTAINER.identity(config, tmp_path)
    put(tmp_path / "pictures" / "test" / "bee" / "c.png", 3)
    assert CONTAINER.identity(config, tmp_path) == before
    put(tmp_path / "pictures" / "test" / "ant" / "d.png", 3)
    after = CONTAINER.identity(config, tmp_path)
    assert after != before
    put(tmp_path / "pictures" / "train" / "bee" / "a.png", 9)
    assert CONTAINER.identity(config, tmp_path) != after


def test_a_metadata_file_gives_the_columns(load: Load, vit: Model, tmp_path: Path) -> None:
    put(tmp_path / "pictures" / "x.png", 10)
    put(tmp_path / "pictures" / "y.png", 20)
    rows = [{"file_name": "y.png", "label": "bee"}, {"file_name": "x.png", "label": "ant"}]
    write_rows(tmp_path / "pictures" / "metadata.jsonl", rows)
    samples, _ = load(FOLDER, model=vit)
    assert [s.target for s in samples] == ["bee", "ant"]
    assert samples[1].inputs["pixel_values"][0, 0, 0] == pytest.approx(10 / 255)
    write_rows(tmp_path / "pictures" / "metadata.jsonl", [{"file_name": "z.png"}])
    with pytest.raises(ConfigError, match=r"metadata.jsonl, row 1: file_name 'z.png' is no file"):
        load(FOLDER, model=vit)


def test_rows_hold_paths_bytes_arrays_or_pictures(load: Load, vit: Model, tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    put(tmp_path / "one.png", 50)
    write_rows(tmp_path / "rows.jsonl", [{"image": "one.png", "label": 2}])
    files = {"load_dataset_config": {"data_name": "json", "data_files": "rows.jsonl"}}
    (of_path,), _ = load(files, model=vit)
    held = io.BytesIO()
    picture(50).save(held, "png")
    table = pyarrow.table({"img": [{"bytes": held.getvalue(), "path": None}], "label": [2]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (of_bytes,), _ = load({"load_dataset_config": {"data_files": "rows.parquet"}}, model=vit)
    write_rows(tmp_path / "numbers.jsonl", [{"pixels": np.asarray(picture(50)).tolist(), "label": 2}])
    numbers = {
        "load_dataset_config": {"data_files": "numbers.jsonl"},
        "pre_process_data_config": {"image_col": "pixels"},
    }
    (of_array,), _ = load(numbers, model=vit)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    datasets.Dataset.from_dict({"image": [picture(50)], "label": [2]}, features=features).save_to_disk(
        tmp_path / "saved"
    )
    (of_picture,), _ = load({"load_dataset_config": {"data_name": "saved"}}, model=vit)
    for sample in (of_path, of_bytes, of_array, of_picture):
        assert sample.target == 2
        assert sample.content_key == of_path.content_key
        assert (sample.inputs["pixel_values"] == of_path.inputs["pixel_values"]).all()


def test_the_models_processor_prepares_and_options_win_over_it(load: Load, tmp_path: Path) -> None:
    put(tmp_path / "pictures" / "a" / "x.png", 255, size=(8, 8))
    told = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 6, "width": 6},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    model = vision_model(tmp_path / "with", told)
    (sample,), report = load(FOLDER, model=model)
    assert sample.inputs["pixel_values"].shape == (3, 6, 6)
    assert sample.inputs["pixel_values"][:, 0, 0] == pytest.approx([1.0, -1.0, -1.0])
    assert sample.inputs["pixel_values"].dtype == np.float32
    assert "processor" not in report
    options = {"image_size": [2, 3], "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    (changed,), _ = load({**FOLDER, "pre_process_data_config": options}, model=model)
    assert changed.inputs["pixel_values"].shape == (3, 2, 3)
    assert changed.inputs["pixel_values"][:, 0, 0] == pytest.approx([1.0, 0.0, 0.0])
    plain = vision_model(tmp_path / "without")
    (same,), _ = load({**FOLDER, "pre_process_data_config": options}, model=plain)
    assert same.inputs["pixel_values"] == pytest.approx(changed.inputs["pixel_values"])


def test_grey_models_get_grey_pictures_and_labels_are_aligned(load: Load, tmp_path: Path) -> None:
    put(tmp_path / "pictures" / "ant" / "x.png", 40)
    put(tmp_path / "pictures" / "bee" / "x.png", 50)
    labels = {"id2label": {"0": "bee", "1": "ant"}, "label2id": {"bee": 0, "ant": 1}}
    model = vision_model(tmp_path / "grey", num_channels=1, **labels)
    samples, _ = load({**FOLDER, "pre_process_data_config": {"align_labels": True}}, model=model)
    assert [s.target for s in samples] == [1, 0]
    assert samples[0].inputs["pixel_values"].shape == (1, 4, 4)


def test_what_is_no_picture_is_named(load: Load, vit: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    write_rows(tmp_path / "rows.jsonl", [{"image": "bad.png"}])
    files = {"load_dataset_config": {"data_name": "json", "data_files": "rows.jsonl"}}
    with pytest.raises(ConfigError, match="row 0: the picture can't be read"):
        load(files, model=vit)
    write_rows(tmp_path / "rows.jsonl", [{"image": [[300]]}])
    with pytest.raises(ConfigError, match="between 0 and 255, not at 300"):
        load(files, model=vit)
    write_rows(tmp_path / "rows.jsonl", [{"photo": "bad.png"}])
    with pytest.raises(ConfigError, match="image_col: no column is named; it has: photo"):
        load(files, model=vit)
    put(tmp_path / "pictures" / "a" / "x.png", 1)
    put(tmp_path / "pictures" / "loose.png", 1)
    with pytest.raises(ConfigError, match=r"loose.png lies in no class's folder"):
        load(FOLDER, model=vit)
    with pytest.raises(ConfigError, match="imagefolder reads a folder"):
        load({"load_dataset_config": {"data_name": "imagefolder", "data_files": "bad.png"}}, model=vit)
    with pytest.raises(ValidationError, match="image_mean and image_std go together"):
        HuggingfaceDataConfig.model_validate({**FOLDER, "pre_process_data_config": {"image_mean": [0.5]}})


def test_pictures_that_a_script_loads_are_prepared(load: Load, vit: Model, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        "from PIL import Image\n"
        "def mine(shade):\n"
        "    return [{'image': Image.new('RGB', (9, 9), (shade, 0, 0)), 'label': 3}]\n"
    )
    config = {
        "user_script": "s.py",
        "load_dataset_config": {"type": "mine", "shade": 51},
        "pre_process_data_config": {"type": "image_pre_process"},
    }
    (sample,), _ = load(config, model=vit, allow=["user-scripts"])
    assert (sample.target, sample.inputs["pixel_values"].shape) == (3, (3, 4, 4))
    assert sample.inputs["pixel_values"].max() == pytest.approx(0.2)

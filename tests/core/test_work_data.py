"""What a job's work gets when it asks for data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from drupe.core.config import PluginConfig
from drupe.core.context import JobContext
from drupe.core.data import DataConfig, DataContainer, Sample
from drupe.core.errors import ConfigError
from drupe.core.job import JobData
from drupe.core.model import Model
from drupe.core.registry import Plugin, Registry
from drupe.core.specs import DataSpec
from drupe.core.work_data import WorkflowData
from tests.support.jobs import job_context


class ItemsConfig(DataConfig):
    ids: list[str] = []
    overlaps: bool = False


class Items(DataContainer):
    Config: ClassVar[type[PluginConfig]] = ItemsConfig  # type: ignore[assignment]
    loads: ClassVar[int] = 0

    def load(self, config: ItemsConfig, model: Model | None, context: JobContext) -> Iterable[Sample]:
        Items.loads += 1
        context.report["accounting"] = {"rows": 9, "dropped": {"too short": 9 - len(config.ids)}}
        extras = {"overlaps": "windows"} if config.overlaps else {}
        return [Sample(name, {}, content_key=name.lower(), extras=extras) for name in config.ids]


def context_of(folder: Path, split: dict[str, Any] | None = None, **config: Any) -> JobContext:
    registry = Registry()
    spec = DataSpec(name="Items", target=f"{__name__}:Items")
    registry.add("drupe_data_containers", [spec], Plugin("items", "", "x", "0"))
    data = WorkflowData({"items": JobData("Items", config, split or {})}, registry, folder)
    return job_context(folder, data_source=data)


def test_parts_are_reported_with_their_contents(tmp_path: Path) -> None:
    context = context_of(tmp_path, {"train": 1, "selection": 1}, ids=["a", "A", "b", "c"])
    train = context.data("items", part="train")
    judged = context.data("items", part="evaluation")
    entry = context.report["data"]["items"]
    assert (entry["rows"], entry["samples"], entry["different"]) == (9, 4, 3)
    assert entry["parts"]["train"]["content_keys"] == sorted({s.content_key for s in train})
    assert entry["parts"]["evaluation"]["different"] == len(judged) == 2
    assert not set(entry["parts"]["train"]["content_keys"]) & set(entry["parts"]["evaluation"]["content_keys"])


def test_data_is_loaded_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    context = context_of(tmp_path, ids=["a"])
    before = Items.loads
    context.data("items")
    context.data("items", part=None)
    assert Items.loads == before + 1


@pytest.mark.parametrize(
    ("split", "config", "message"),
    [
        ({}, {"ids": []}, r"'items' \(Items\) gives no samples \(9 rows; 9 dropped: too short\)"),
        ({}, {"ids": ["a", "a"]}, "two samples with the id 'a'"),
        ({"train": 5}, {"ids": ["a"]}, "data config 'items': the split asks for 5 contents"),
        ({"train": 0, "selection": 1}, {"ids": ["a", "b"]}, "the part 'train' of its split .* is empty"),
        ({"train": 1}, {"ids": ["a", "b"], "overlaps": True}, r"its samples overlap \(windows\)"),
    ],
)
def test_faults(split: dict[str, Any], config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        context_of(tmp_path, split, **config).data("items")


def test_an_unknown_name_is_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'itmes' is not part of this job; known here: items"):
        context_of(tmp_path, ids=["a"]).data("itmes")

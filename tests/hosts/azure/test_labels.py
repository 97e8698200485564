"""Models and data by label: what a label means is asked once a run, keyed and recorded by its version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drupe.core.errors import ConfigError
from drupe.core.pinning import Pins
from tests.hosts.azure.cloud import Cloud
from tests.hosts.azure.looks import Look, names
from tests.support.workflows import drupe, manifest, runs, toy_document, write_workflow


@pytest.fixture
def look(azure: Cloud, tmp_path: Path) -> Look:
    return Look(tmp_path)


def text_model(azure: Cloud, folder: Path, version: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(text)
    azure.put_model(folder, "words", version)


def test_a_label_that_moved_is_another_model(azure: Cloud, tmp_path: Path) -> None:
    """In the key, in the manifest, and in what is fetched, even where it moves between the two."""
    text_model(azure, tmp_path / "a", "9", "ab")
    path = write_workflow(
        tmp_path,
        toy_document(
            tmp_path,
            input_model={"type": "TextModel", "model_path": "azureml:words@latest"},
            azureml_client=azure.client,
        ),
    )

    def result() -> tuple[str, Any, int]:
        done = drupe("run", path, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        text = (tmp_path / "out/here/model/text.txt").read_text()
        appended = sum(line.startswith("Append") for line in runs(tmp_path))
        return text, manifest(tmp_path)["resolved"]["references"][0]["means"]["version"], appended

    answer, listed = azure.assets.answer, r"^GET management.*/models/words/versions\?"

    def then_it_moves(*request: Any) -> Any:
        reply = answer(*request)
        if azure.faults.count(listed) == 1:
            text_model(azure, tmp_path / "b", "10", "abcd")
        return reply

    azure.assets.answer = then_it_moves  # type: ignore[method-assign]
    assert result() == ("ab!!!", "9", 1)
    assert azure.faults.count(listed) == 1
    assert result() == ("abcd!!!", "10", 2)


def test_models_by_label(azure: Cloud, look: Look, tmp_path: Path) -> None:
    for version in ("8", "9", "10"):
        text_model(azure, tmp_path / "a", version, version)
    own = {"type": "azureml_model", "config": {"name": "words", "label": "latest", "azureml_client": azure.client}}
    pinned = look.source(own).pinned(own, tmp_path)
    assert {key: pinned[key] for key in ("type", "name", "version")} == {  # type: ignore[index]
        "type": "azureml_model", "name": "words", "version": "10",
    }  # fmt: skip
    text_model(azure, tmp_path / "a", "11", "11")
    assert look.identity(pinned)["model"][1:] == ["words", "10"]
    assert look.fetch(pinned).read_text() == "10"
    assert look.identity(own)["model"][1:] == ["words", "11"]
    there = look.context_of(azure, "azureml://models/words/labels/latest")
    assert look.identity(there)["model"][1:] == ["words", "11"]
    with pytest.raises(ConfigError, match=r"words@prod in the workspace: there is no such label; .* \(.*11.*\)$"):
        look.source(own).pinned({**own["config"], "type": "azureml_model", "label": "prod"}, tmp_path)
    with pytest.raises(ConfigError, match="none@latest in the workspace: Not found asset"):
        look.identity(look.context_of(azure, "azureml://models/none/labels/latest"))


def test_data_assets_by_version_and_label(azure: Cloud, look: Look, tmp_path: Path) -> None:
    for name in ("one/a.jsonl", "two/a.jsonl", "two/b.jsonl"):
        (azure.container / name).parent.mkdir(exist_ok=True)
        (azure.container / name).write_text(name)
    azure.put_data("rows", "1", "one/a.jsonl", kind="uri_file")
    azure.put_data("rows", "2", "two/")
    first = {"type": "azureml_data", "name": "rows", "version": 1, "azureml_client": azure.client}
    assert look.fetch(first).read_text() == "one/a.jsonl"
    assert list(look.identity(first)["files"]) == ["one/a.jsonl"]
    latest = look.context_of(azure, "azureml://data/rows/labels/latest")
    pinned = look.source(latest).pinned(latest, tmp_path)
    assert names(look.fetch(pinned)) == ["a.jsonl", "b.jsonl"]
    assert look.identity(latest) == look.identity(pinned) != look.identity(first)
    once = Pins(look.registry, tmp_path)
    assert once.pinned([latest]) == [pinned]
    azure.put_data("rows", "3", "one/a.jsonl", kind="uri_file")
    # What a run's record tells is enough to go on with it, though it holds no client.
    assert "azureml_client" not in once.moved()[0]["means"]
    assert Pins(look.registry, tmp_path, once.moved()).pinned(latest) == pinned
    assert Pins(look.registry, tmp_path).pinned(latest)["version"] == "3"
    azure.put_data("rows", "3", "two/", kind="mltable")
    for reference, says in (
        ({**first, "version": "9"}, "data asset rows:9 in the workspace: Not found asset"),
        ({**first, "version": "3"}, "data asset rows is an MLTable, whose recipe is not followed"),
        (
            look.context_of(azure, "azureml://data/rows/labels/gold"),
            "rows@gold in the workspace: there is no such label",
        ),
        (
            look.context_of(azure, "azureml://registries/r/data/d/versions/1"),
            "data of a registry, which is not fetched",
        ),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            look.identity(reference)
        assert "\n" not in str(caught.value)


def test_short_names_mean_a_model_or_data_by_where_they_stand() -> None:
    from drupe.core.workflow.clients import with_client

    document = {
        "azureml_client": {"subscription_id": "s"},
        "input_model": {"model_path": "azureml:words:3"},
        "data_configs": [{"data_files": ["azureml:rows@latest", "rows.jsonl"], "bad": "azureml:rows"}],
    }
    found = with_client(document)
    assert found["input_model"]["model_path"]["uri"] == "azureml://models/words/versions/3"
    files = found["data_configs"][0]["data_files"]
    assert files[0]["uri"] == "azureml://data/rows/labels/latest" and files[1] == "rows.jsonl"
    # What can't be read is the source's to tell.
    assert found["data_configs"][0]["bad"]["uri"] == "azureml:rows"
    assert json.dumps(found).count("subscription_id") == 4


def test_a_datastore_url_stands_for_datastore_and_path(azure: Cloud, look: Look) -> None:
    (azure.container / "rows").mkdir()
    (azure.container / "rows" / "a.jsonl").write_text("a")
    place = {"type": "azureml_datastore", "azureml_client": azure.client}
    url = "azureml://datastores/workspaceblobstore/paths/rows/a.jsonl"
    assert look.fetch({**place, "datastore_url": url}).read_text() == "a"
    for more, says in (
        (
            {"datastore_url": url, "datastore_name": "d"},
            "datastore_url says what datastore_name would; leave those out",
        ),
        ({"datastore_url": "azureml://models/m/versions/1"}, "expected azureml://datastores/D/paths/P"),
        ({"datastore_url": "azureml:rows"}, "azureml:rows can't be read; expected a form like"),
    ):
        (fault,) = look.source(place).check({**place, **more}, look.folder)
        assert says in str(fault) and "\n" not in str(fault)

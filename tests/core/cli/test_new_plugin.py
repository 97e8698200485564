"""`drupe new-plugin` writes a package that works: its own tests pass, and its pass has its name everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from drupe.testing import install_plugin
from tests.support.commands import run_command

REPOSITORY = Path(__file__).parents[3]


def drupe(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DRUPE_HOME": str(folder / "home"), **variables}
    return run_command(arguments, env=env, cwd=folder)


def install(package: Path, site: Path) -> None:
    """Put the package's sources and entry points into a folder, as pip would."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    files = {p.relative_to(package / "src").as_posix(): p.read_text() for p in (package / "src").rglob("*.py")}
    install_plugin(site, project["name"], files, plugins=project["entry-points"]["drupe"], version=project["version"])


def run_tests(package: Path, site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site), "DRUPE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(package), str(package)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_template_passes_its_own_tests(tmp_path: Path) -> None:
    template = REPOSITORY / "contrib" / "plugin-template"
    install(template, tmp_path / "site")
    done = run_tests(template, tmp_path / "site", tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_package_of_another_name_passes_its_generated_tests(tmp_path: Path) -> None:
    made = drupe("new-plugin", "acme-round", "--pass", "RoundWeights", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    package = tmp_path / "acme-round"
    text = "".join(p.read_text() + p.as_posix() for p in package.rglob("*") if p.is_file())
    assert not [word for word in ("example", "ClipWeights", "clip_weights") if word in text]
    install(package, tmp_path / "site")
    done = run_tests(package, tmp_path / "site", tmp_path)
    assert done.returncode == 0, done.stdout

    shown = drupe("passes", "roundweights", folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert "limit: number (> 0) = 1.0" in shown.stdout
    assert "plugin acme_round (acme-round 0.1.0)" in shown.stdout
    checked = drupe("plugins", "check", "acme-round", folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert checked.returncode == 0, checked.stdout
    assert "equal work gives equal models" in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["taken"], "is there and not empty"),
        (["new", "--name", "-x"], "--name: '-x'; expected a distribution's name"),
        (["new", "--package", "a-b"], "--package: 'a-b'"),
        (["new", "--package", "drupe"], "a name of your own"),
        (["new", "--pass", "3D"], "--pass: '3D'"),
        (["new", "--pass", "lora"], "plugin tuning (drupe"),
    ],
)
def test_what_cannot_be_made_is_told_before_anything_is_written(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    done = drupe("new-plugin", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "new").exists()


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    done = drupe("new-plugin", "new", "--name", "-x", "--package", "a-b", "--pass", "3D", folder=tmp_path)
    assert done.stderr.startswith("error: 3 things are wrong")


def test_a_folder_that_can_not_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = drupe("new-plugin", "file/acme", "--pass", "Acme", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: file/acme can't be written: Not a directory; name another DIR\n"


def test_what_to_type_next_can_be_typed(tmp_path: Path) -> None:
    done = drupe("new-plugin", "my plugins/acme", "--pass", "Acme", folder=tmp_path)
    assert "  pip install -e 'my plugins/acme[test]'\n  pytest 'my plugins/acme'\n" in done.stdout, done.stderr

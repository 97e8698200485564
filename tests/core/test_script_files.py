"""Modules that lie beside a user's script, and loaders that never end."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from drupe.core.digests import file_digest
from drupe.core.errors import ConfigError
from drupe.core.keys import file_identity
from drupe.core.script_files import script_files
from drupe.core.user_scripts import loader_items, user_function
from tests.support.jobs import job_context


def test_an_import_that_is_nowhere_is_one_message_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("import codes_of_mine")
    with pytest.raises(ConfigError, match=r"codes_of_mine is no installed package.*script_dir"):
        user_function("s.py", "f", job_context(tmp_path, allow=frozenset({"user-scripts"})))


def test_scripts_of_two_folders_have_their_own_modules_and_may_import_late(tmp_path: Path) -> None:
    context = job_context(tmp_path, allow=frozenset({"user-scripts"}))
    for name in ("a", "b"):
        (tmp_path / name / "codes").mkdir(parents=True)
        (tmp_path / name / "config_of_two.py").write_text(f"NAME = {name!r}")
        (tmp_path / name / "codes" / f"late_{name}.py").write_text(f"NAME = {name!r}")
        late = f"def f():\n    from codes import late_{name}\n    return config_of_two.NAME + late_{name}.NAME"
        (tmp_path / name / "s.py").write_text(f"import config_of_two\n{late}  # {name}")
    found = [user_function(f"{name}/s.py", "f", context) for name in ("a", "b")]
    assert [function() for function in found] == ["aa", "bb"]


def test_a_script_counts_with_what_it_imports_from_its_folder(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("import json\nfrom patches.layers import swap\ndef f():\n    import config")
    assert file_identity(script, file_digest) == file_digest(script)
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "layers.py").write_text("import shapes")
    for name in ("config", "shapes", "unrelated"):
        (tmp_path / f"{name}.py").write_text("A = 1")
    names = [path.relative_to(tmp_path).as_posix() for path in script_files(script)]
    assert names == ["s.py", "config.py", "patches/layers.py", "shapes.py"]
    before = file_identity(script, file_digest)
    (tmp_path / "unrelated.py").write_text("A = 2")
    assert file_identity(script, file_digest) == before
    (tmp_path / "shapes.py").write_text("A = 2")
    assert file_identity(script, file_digest) != before


def test_a_script_is_parsed_once_for_all_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "s.py"
    script.write_text(f"import beside_it  # {tmp_path}")
    (tmp_path / "beside_it.py").write_text(f"A = 1  # {tmp_path}")
    parsed = []
    parse = ast.parse

    def counted(*given: Any) -> ast.AST:
        parsed.append(given)
        return parse(*given)

    monkeypatch.setattr(ast, "parse", counted)
    assert [len(script_files(script)) for _ in range(3)] == [2, 2, 2] and len(parsed) == 2
    script.write_text("x = 1")
    assert script_files(script) == [script]


def test_a_loader_without_end_gives_a_few_batches_and_one_that_ends_all_of_them() -> None:
    class Endless:
        def __getitem__(self, index: int) -> int:
            return index

    class Ends:
        def __getitem__(self, index: int) -> int:
            if index >= 40:
                raise StopIteration
            return index

    items, taken = loader_items(Endless())
    assert taken is not None and list(items) == list(range(taken))
    items, taken = loader_items(Ends())
    assert (taken, len(list(items))) == (None, 40)

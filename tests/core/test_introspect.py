"""Names read from an installed library's source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drupe.core import introspect

SOURCE = '''
import heavy_thing_that_is_not_installed
from dataclasses import dataclass, field
from .base import Base
from elsewhere import Foreign

KEYS = ("alpha", "beta")

@dataclass
class Arguments(Base, Foreign):
    """Doc."""
    kept: ClassVar[int] = 3
    _private: int = 0
    rate: float = field(default=5e-5, metadata={"help": "How  fast."})
    names: list[str] = field(default_factory=list)
    name: str
    kind: Kind | str = Kind.LINEAR

class Builder:
    def make(self, model, *, block=32, other: "int" = other_default):
        pass

def run(options):
    options.get("plain")
    if "asked" in options: options["taken"]
    for key in KEYS:
        if key in options: pass
    for unrelated in ("gamma",):
        print(unrelated)
    parser.add_argument("-p", "--precision", choices=["int4", "fp16"])
    parser.add_argument("--free")
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "sourcelib"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "args.py").write_text(SOURCE)
    (folder / "base.py").write_text("class Base:\n    first: int = 1\n    rate: int = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("DRUPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(introspect, "_answers", {})
    return folder


def test_fields_come_with_annotation_default_and_help_bases_first(library: Path) -> None:
    fields = introspect.class_fields("sourcelib.args", "Arguments")
    assert list(fields) == ["first", "rate", "names", "name", "kind"]
    assert fields["rate"] == introspect.FieldInfo("rate", "float", 5e-5, "5e-05", False, "How fast.")
    assert fields["names"].default_source == "list()" and not fields["names"].required
    assert fields["name"].required
    assert fields["kind"].default is None and fields["kind"].default_source == "Kind.LINEAR"


def test_parameters_of_a_method_leave_out_self(library: Path) -> None:
    parameters = introspect.function_parameters("sourcelib.args", "Builder.make")
    assert list(parameters) == ["model", "block", "other"]
    assert parameters["model"].required and parameters["block"].default == 32


def test_mapping_keys_follow_loops_over_literal_names(library: Path) -> None:
    assert introspect.mapping_keys("sourcelib.args", "options") == {"plain", "asked", "taken", "alpha", "beta"}
    assert introspect.mapping_keys("sourcelib", "options") == introspect.mapping_keys("sourcelib.args", "options")


def test_argument_choices(library: Path) -> None:
    assert introspect.argument_choices("sourcelib.args", "--precision") == ("int4", "fp16")
    with pytest.raises(LookupError, match="--free"):
        introspect.argument_choices("sourcelib.args", "--free")


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("no_such_library.args", "Arguments", "no_such_library is not installed"),
        ("sourcelib.missing", "Arguments", "sourcelib.missing has no source"),
        ("sourcelib.args", "Argument", "sourcelib.args has no class Argument"),
    ],
)
def test_what_cannot_be_found_is_said(library: Path, module: str, name: str, message: str) -> None:
    with pytest.raises(LookupError, match=message):
        introspect.class_fields(module, name)


def test_the_disk_cache_answers_until_the_source_changes(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = introspect.class_fields("sourcelib.args", "Arguments")
    monkeypatch.setattr(introspect, "_answers", {})
    with monkeypatch.context() as patch:
        patch.setattr(introspect.ast, "parse", None)  # A second parse would fail.
        assert introspect.class_fields("sourcelib.args", "Arguments") == before
    monkeypatch.setattr(introspect, "_answers", {})
    (library / "base.py").write_text("class Base:\n    added: int = 1\n")
    assert "added" in introspect.class_fields("sourcelib.args", "Arguments")


def test_a_damaged_cache_entry_is_written_anew(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = introspect.class_fields("sourcelib.args", "Arguments")
    for entry in (introspect.cache_folder() / "introspect").iterdir():
        entry.write_text('{"files": [')
    monkeypatch.setattr(introspect, "_answers", {})
    assert introspect.class_fields("sourcelib.args", "Arguments") == before


def test_the_real_training_arguments_are_read_without_importing_them() -> None:
    pytest.importorskip("transformers")
    code = (
        "import sys; from drupe.core.introspect import class_fields as c;"
        "f = c('transformers.training_args', 'TrainingArguments');"
        "assert f['learning_rate'].default == 5e-05, f;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

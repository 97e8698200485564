"""`drupe validate` and `drupe plan` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from drupe.core import registry as registry_module
from drupe.core.cli import main
from drupe.core.cli.plan import plan
from drupe.core.cli.validate import validate
from tests.core.workflow.plugins import base_document, make_registry


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_registry()
    monkeypatch.setattr(registry_module, "get_registry", lambda policy=None: made)


def call(command: Any, folder: Path, *options: str, **changes: Any) -> Result:
    path = folder / "w.json"
    path.write_text(json.dumps(base_document(**changes)))
    return CliRunner().invoke(command, [str(path), *options])


def test_a_good_file_is_valid(tmp_path: Path) -> None:
    result = call(validate, tmp_path)
    assert result.exit_code == 0 and result.output == f"{tmp_path / 'w.json'}: valid\n"


def test_needs_do_not_make_a_file_invalid(tmp_path: Path) -> None:
    result = call(validate, tmp_path, evaluators={"judge": {"metrics": [{"type": "accuracy", "user_script": "s.py"}]}})
    assert result.exit_code == 0
    assert "needs (2)" in result.output and "drupe run also needs what is listed above" in result.output


def test_what_is_wrong_is_listed_under_its_kind_and_exits_2(tmp_path: Path) -> None:
    passes = {"a": {"type": "ModelBilder"}, "b": {"type": "MobiusBuilder"}, "c": {"type": "GenAIModelExporter"}}
    result = call(validate, tmp_path, passes=passes)
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert lines[0] == "notices (1)" and lines[2] == "faults (1)" and lines[4].startswith("missing")
    assert "did you mean 'ModelBuilder'?" in lines[3] and "MobiusBuilder" in lines[5]
    assert lines[-1].endswith("w.json: not valid")


def test_json_holds_the_same(tmp_path: Path) -> None:
    result = call(validate, tmp_path, "--json", passes={"a": {"type": "ModelBilder"}, "b": {"type": "MobiusBuilder"}})
    data = json.loads(result.output)
    assert data["valid"] is False
    assert [fault["path"] for fault in data["faults"]] == ["passes.a.type"]
    assert data["missing"][0] == {
        "path": "passes.b.type",
        "found": "the pass 'MobiusBuilder' is not installed",
        "expected": "a plugin that provides it",
        "hint": "known as: vendor: a plugin for Microsoft's Mobius exporter",
    }


@pytest.mark.parametrize("consent", ["user-scripts", "nothing"])
def test_allow_takes_the_known_consents(tmp_path: Path, consent: str) -> None:
    (tmp_path / "s.py").touch()
    script = {"judge": {"metrics": [{"type": "accuracy", "user_script": "s.py"}]}}
    result = call(validate, tmp_path, "--allow", consent, evaluators=script)
    assert (result.exit_code, "valid\n" in result.output) == ((0, True) if consent == "user-scripts" else (2, False))


def test_a_malformed_file_exits_2_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("passes: [\n")
    result = CliRunner().invoke(validate, [str(path)])
    assert result.exit_code == 2 and "w.yaml, line 2, column 1: malformed YAML" in result.output


def test_an_absent_file_exits_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(validate, [str(tmp_path / "none.yaml")])
    assert result.exit_code == 2 and "none.yaml: no such file" in result.output


def test_the_plan_shows_chain_search_and_trials(tmp_path: Path) -> None:
    passes = {
        "tune": {"type": "LoRA", "train_data_config": "tone", "r": {"search": [4, 16]}},
        "build": {"type": "ModelBuilder", "precision": {"search": ["int4", "int8"]}},
    }
    result = call(plan, tmp_path, passes=passes, search_strategy={"max_trials": 3})
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "w",
        "target  here: cpu CPUExecutionProvider",
        "chain   tune (LoRA) → build (ModelBuilder)",
        "search  tune.r: 4, 16",
        "search  build.precision: int4, int8",
        "points  4",
        "trials  3",
        "power   accuracy-accuracy_score: how many items there are is known after loading only",
        "time    nothing is known yet: no step of this workflow has run in this store",
    ]


def test_the_plan_tells_what_could_be_searched(tmp_path: Path) -> None:
    result = call(plan, tmp_path, search_strategy=True)
    assert "trials  1" in result.output and "tune.r, tune.rounds" in result.output


def test_the_plan_as_json(tmp_path: Path) -> None:
    passes = {"b": [{"type": "ModelBuilder"}, {"type": "MergeAdapterWeights", "host": "here"}]}
    data = json.loads(call(plan, tmp_path, "--json", passes=passes).output)
    assert data["flows"][0][0]["alternatives"][1] == {"type": "MergeAdapterWeights", "host": "here"}
    assert (data["points"], data["trials"]) == (2, 2)
    assert data["dimensions"] == [{"name": "b", "values": [0, 1], "when": {}}]


def test_a_chain_that_does_not_fit_is_told_before_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.json"
    passes = {"build": {"type": "ModelBuilder"}, "merge": {"type": "MergeAdapterWeights"}}
    path.write_text(json.dumps(base_document(passes=passes)))
    assert main(["plan", str(path)]) == 2
    assert "passes.merge: MergeAdapterWeights takes hf models and would be given genai" in capsys.readouterr().err


def test_validate_tells_of_a_chain_that_does_not_fit(tmp_path: Path) -> None:
    passes = {"build": {"type": "ModelBuilder"}, "merge": {"type": "MergeAdapterWeights"}}
    result = call(validate, tmp_path, passes=passes)
    assert result.exit_code == 2
    assert "passes.merge: MergeAdapterWeights takes hf models and would be given genai" in result.output


def test_a_chain_with_values_to_fill_in_is_not_judged(tmp_path: Path) -> None:
    system = {"type": "LocalSystem", "accelerators": [{"device": "<place_holder>"}]}
    result = call(validate, tmp_path, systems={"here": system}, passes={"c": {"type": "OnnxConversion"}})
    assert result.exit_code == 0

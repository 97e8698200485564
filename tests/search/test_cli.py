from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest
from click.testing import CliRunner

from drupe.core.errors import ConfigError, NoFeasibleModel
from drupe.core.study import Outcome, StudySettings
from drupe.search.cli import search
from tests.search.synthetic import GOALS, OBJECTIVES, SPACE, measured, new_study, open_study, run


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output folder with a study of 12 trials, one more running."""
    study = open_study(tmp_path / "study", max_trials=13, sampler="random")
    for _ in range(12):
        trial = study.ask()
        assert trial is not None
        from tests.search.synthetic import outcome_of

        study.tell(trial, outcome_of(trial.point))
    study.ask()
    return tmp_path


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(search, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_status_counts_the_trials(output: Path) -> None:
    (data,) = json.loads(invoke("status", str(output), "--json"))
    assert (data["study"], data["complete"], data["running"], data["failed"]) == ("cpu", 12, 1, 0)
    assert "12 complete, 1 running" in invoke("status", str(output))


def test_a_trial_that_was_set_aside_does_not_count_as_running(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", max_trials=2, sampler="random")
    trial = study.ask()
    assert trial is not None
    study.release(trial)
    study.ask()
    assert "cpu: 1 running, 1 set aside" in invoke("status", str(tmp_path))
    assert "cpu: no trial was measured yet" in invoke("pareto", str(tmp_path))


@pytest.mark.parametrize("where", ["", "study", "study/study.journal"])
def test_a_study_is_found_by_folder_or_file(output: Path, where: str) -> None:
    assert "candidate" in invoke("best", str(output / where))


def test_best_is_what_the_study_selects(output: Path) -> None:
    data = json.loads(invoke("best", str(output), "--json"))
    assert data["number"] == open_study(output / "study", sampler="random", max_trials=13).select()
    assert data["feasible"] is True


def test_without_a_feasible_trial_the_nearest_is_told_and_the_exit_is_3(tmp_path: Path) -> None:
    study = new_study()
    study.open("cpu", SPACE, GOALS, OBJECTIVES, StudySettings(max_trials=3), tmp_path / "study")
    for latency in (30.0, 25.0):
        trial = study.ask()
        assert trial is not None
        values = {"latency-p50": measured("latency-p50", latency, "lower"), "accuracy-exact": measured("a", 0.9)}
        study.tell(trial, Outcome("complete", values, {"latency-p50 threshold": (latency - 20) / 20}))
    with pytest.raises(NoFeasibleModel) as caught:
        invoke("best", str(tmp_path))
    assert caught.value.exit_code == 3
    assert "the goal latency-p50 threshold 20 blocks most" in str(caught.value)
    assert "candidate 1 would be feasible with latency-p50 threshold 20 → 25" in str(caught.value)
    text = invoke("explain", str(tmp_path))
    assert "nothing meets the goals" in text and "the goal that binds: latency-p50" in text


def test_pareto_marks_the_pick_and_what_breaks_a_goal(output: Path) -> None:
    rows = json.loads(invoke("pareto", str(output), "--json"))
    assert [row["best"] for row in rows].count(True) == 1
    assert {row["feasible"] for row in rows} == {True, False}
    assert any(
        line.startswith("!") and "breaks latency-p50" in line for line in invoke("pareto", str(output)).splitlines()
    )


def test_export_writes_every_trial(output: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(invoke("export", str(output)))))
    assert [int(row["number"]) for row in rows] == list(range(12))
    assert float(rows[0]["latency-p50"]) > 0
    file = tmp_path / "trials.json"
    invoke("export", str(output), "--format", "json", "-o", str(file))
    assert len(json.loads(file.read_text())) == 12


def test_explain_as_json(output: Path) -> None:
    data = json.loads(invoke("explain", str(output), "--json"))
    assert set(data["importance"]) == {"accuracy-exact", "latency-p50"}
    assert len(data["lost"]) == 11


def test_no_study_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no study here"):
        invoke("status", str(tmp_path))
    open_study(tmp_path / "study")
    with pytest.raises(ConfigError, match="0 studies are named 'npu'"):
        invoke("best", str(tmp_path), "--study", "npu")


def test_dashboard_reads_the_storage(output: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    from drupe.search.reading import find_home

    app = dashboard.wsgi(find_home(str(output)).storage)
    answer: list[str] = []
    environment: dict[str, object] = {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(environment)
    body = b"".join(app(environment, lambda state, headers, error=None: answer.append(state)))
    assert answer[0].startswith("200")
    assert json.loads(body)["study_summaries"][0]["study_name"] == "cpu"


def test_a_running_study_can_be_read_meanwhile(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", max_trials=4, sampler="random")
    run(study)
    assert "4 complete" in invoke("status", str(tmp_path))
    assert study.ask() is None

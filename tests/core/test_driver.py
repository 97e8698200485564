"""A whole workflow, on texts: search, verdicts, hand-over, failures, resuming."""

from __future__ import annotations

import csv
import signal
import time
from pathlib import Path

import pytest

from tests.support.workflows import drupe, goal, manifest, runs, start_drupe, toy_document, write_workflow


def search_document(folder: Path, **changes: object) -> dict[str, object]:
    passes = {
        "append": {"type": "Append", "text": {"search": ["!", "?"]}, "times": {"search": [3, 12], "ordered": True}}
    }
    return toy_document(folder, passes=passes, search_strategy={"max_trials": 4, "seed": 1}, **changes)


def test_a_run_without_search_hands_the_model_over(tmp_path: Path) -> None:
    done = drupe("run", write_workflow(tmp_path, toy_document(tmp_path)), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/here/model/text.txt").read_text() == "ab!!!"
    target = manifest(tmp_path)["targets"]["here"]
    assert target["status"] == "met"
    assert target["candidates"][0]["measurements"]["accuracy-accuracy_score"]["n"] == 400
    measured = target["candidates"][0]["measurements"]["accuracy-accuracy_score"]
    low, high = measured["interval"]
    assert 0.2 < low < measured["value"] < high < 0.4


def test_a_data_config_that_nothing_names_need_not_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    document = toy_document(tmp_path)
    absent = {"name": "absent", "type": "HuggingfaceContainer", "load_dataset_config": {"data_name": "no/such"}}
    document["data_configs"].append(absent)
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 0, done.stdout


def test_the_winner_is_the_best_that_meets_its_goal_and_is_certified_on_unseen_items(tmp_path: Path) -> None:
    document = search_document(tmp_path)
    goal(document, 0.5, confidence=0.95)
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    target = manifest(tmp_path)["targets"]["here"]
    assert target["status"] == "certified"
    winner = next(c for c in target["candidates"] if c["number"] == target["winner"])
    assert winner["point"]["append.times"] == 12
    assert target["certification"]["accuracy-accuracy_score"]["split"] == "certification"
    assert target["certification"]["accuracy-accuracy_score"]["n"] == 200
    assert winner["measurements"]["accuracy-accuracy_score"]["n"] == 200
    with (tmp_path / "out/candidates.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 4
    assert [r["winner"] for r in rows].count("True") == 1


def test_an_impossible_goal_exits_3_names_the_nearest_and_hands_nothing_out(tmp_path: Path) -> None:
    document = search_document(tmp_path)
    goal(document, 0.99)
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 3
    assert "nearest: candidate" in done.stdout
    assert "accuracy-accuracy_score" in done.stdout
    assert not (tmp_path / "out/here/model").exists()
    assert manifest(tmp_path)["targets"]["here"]["winner"] is None


def test_a_goal_that_the_data_cannot_decide_exits_3_with_the_candidate_set_aside(tmp_path: Path) -> None:
    document = search_document(tmp_path)
    goal(document, 0.69, confidence=0.999)
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 3, done.stdout
    assert manifest(tmp_path)["targets"]["here"]["status"] == "undecided"
    assert (tmp_path / "out/here/undecided/text.txt").exists()
    assert not (tmp_path / "out/here/model").exists()


@pytest.mark.parametrize(("finalists", "code", "status"), [(1, 3, "undecided"), (2, 0, "certified")])
def test_a_second_finalist_may_win_where_it_was_asked_for(
    tmp_path: Path, finalists: int, code: int, status: str
) -> None:
    passes = {"append": {"type": "Append", "times": {"search": [5, 15], "ordered": True}}}
    search = {"max_trials": 2, "seed": 1, "finalists": finalists}
    document = toy_document(tmp_path, passes=passes, search_strategy=search)
    goal(document, 0.33, confidence=0.95)
    accuracy, size = document["evaluators"]["quality"]["metrics"]
    accuracy["sub_types"][0]["priority"], size["sub_types"][0]["priority"] = 2, 1
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    target = manifest(tmp_path)["targets"]["here"]
    assert target["status"] == status
    if finalists == 2:
        points = {c["number"]: c for c in target["candidates"]}
        assert points[target["winner"]]["point"]["append.times"] == 15
        assert any("could not be certified" in (c["lost_because"] or "") for c in target["candidates"])


def test_a_former_winner_is_withdrawn_when_the_limit_no_longer_holds(tmp_path: Path) -> None:
    document = toy_document(tmp_path)
    assert drupe("run", write_workflow(tmp_path, document), folder=tmp_path).returncode == 0
    goal(document, 0.9)
    assert drupe("run", write_workflow(tmp_path, document), folder=tmp_path).returncode == 3
    assert not (tmp_path / "out/here/model").exists()


def test_a_second_run_does_nothing_again(tmp_path: Path) -> None:
    document = search_document(tmp_path)
    goal(document, 0.5, confidence=0.95)
    path = write_workflow(tmp_path, document)
    assert drupe("run", path, folder=tmp_path).returncode == 0
    before, first = runs(tmp_path), manifest(tmp_path)
    assert drupe("run", path, folder=tmp_path).returncode == 0
    assert runs(tmp_path) == before
    second = manifest(tmp_path)
    assert second["targets"]["here"]["winner"] == first["targets"]["here"]["winner"]
    assert [c["model"] for c in second["targets"]["here"]["candidates"]] == [
        c["model"] for c in first["targets"]["here"]["candidates"]
    ]
    assert all(c["chain"] for c in second["targets"]["here"]["candidates"])


def test_the_same_passes_in_another_order_are_another_study(tmp_path: Path) -> None:
    append = {"type": "Append", "times": {"search": [3, 12], "ordered": True}}
    document = toy_document(tmp_path, passes={"append": append, "exclaim": {"type": "Append", "text": "?"}})
    assert drupe("run", write_workflow(tmp_path, document), folder=tmp_path).returncode == 0
    assert (tmp_path / "out/here/model/text.txt").read_text() == "ab" + "!" * 12 + "?"
    document["passes"] = dict(reversed(document["passes"].items()))
    assert drupe("run", write_workflow(tmp_path, document), folder=tmp_path).returncode == 0
    assert (tmp_path / "out/here/model/text.txt").read_text() == "ab?" + "!" * 12
    candidates = manifest(tmp_path)["targets"]["here"]["candidates"]
    assert [step["pass"] for step in candidates[0]["chain"]] == ["exclaim", "append"]
    assert len([line for line in runs(tmp_path) if line.startswith("Append")]) == 7


def test_a_failing_pass_is_a_failed_trial_and_the_others_go_on(tmp_path: Path) -> None:
    passes = {"risky": {"type": "Raises", "fail": {"search": [True, False]}}}
    document = toy_document(tmp_path, passes=passes, search_strategy={"max_trials": 2, "seed": 3})
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    candidates = manifest(tmp_path)["targets"]["here"]["candidates"]
    assert sorted(c["state"] for c in candidates) == ["complete", "failed"]
    failed = next(c for c in candidates if c["state"] == "failed")
    assert "the toy is broken" in failed["error"]
    assert "Traceback" not in done.stdout + done.stderr


def test_when_every_trial_fails_the_exit_code_is_1(tmp_path: Path) -> None:
    document = toy_document(tmp_path, passes={"risky": {"type": "Raises"}})
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 1
    assert "the toy is broken" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_metric_that_fails_never_counts_as_met(tmp_path: Path) -> None:
    document = toy_document(tmp_path)
    document["evaluators"]["quality"]["metrics"].append(
        {
            "name": "odd",
            "type": "toy_broken",
            "sub_types": [{"name": "value", "goal": {"type": "threshold", "value": 0}}],
        }
    )
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 3
    assert "the toy metric can't measure this" in done.stdout


def test_a_pass_that_changes_its_input_is_told_and_the_store_stays_right(tmp_path: Path) -> None:
    document = toy_document(tmp_path, passes={"bad": {"type": "ChangesInput"}})
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 1
    assert "changed its input model" in done.stdout
    document["passes"] = {"append": {"type": "Append"}}
    assert drupe("run", write_workflow(tmp_path, document), folder=tmp_path).returncode == 0
    assert (tmp_path / "out/here/model/text.txt").read_text() == "ab!"


def test_a_pass_that_writes_nothing_is_told(tmp_path: Path) -> None:
    document = toy_document(tmp_path, passes={"empty": {"type": "WritesNothing"}})
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 1
    assert "neither in its output folder nor in its input" in done.stdout


def test_a_worker_that_dies_is_tried_again_and_then_told(tmp_path: Path) -> None:
    document = toy_document(tmp_path, passes={"dies": {"type": "Dies"}}, systems={"here": {"type": "LocalSystem"}})
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 1
    assert runs(tmp_path) == ["Dies"] * 3
    assert "Traceback" not in done.stdout + done.stderr


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on_when_there_is_space(tmp_path: Path) -> None:
    passes = {"append": {"type": "Append"}, "full": {"type": "FullDisk"}}
    path = write_workflow(tmp_path, toy_document(tmp_path, passes=passes))
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 1
    assert "No space left" in done.stdout + done.stderr
    (tmp_path / "space").touch()
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert runs(tmp_path).count("Append ! 1") == 1


def wait_for(folder: Path, line: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while line not in runs(folder):
        assert time.monotonic() < end, runs(folder)
        time.sleep(0.02)


@pytest.mark.parametrize("in_process", [False, True])
def test_ctrl_c_exits_130_and_the_same_command_goes_on(tmp_path: Path, in_process: bool) -> None:
    passes = {"append": {"type": "Append"}, "nap": {"type": "Sleepy", "steps": 12, "seconds": 0.15}}
    systems = {"here": {"type": "LocalSystem", "in_process": in_process}}
    path = write_workflow(tmp_path, toy_document(tmp_path, passes=passes, systems=systems))
    process = start_drupe("run", path, folder=tmp_path)
    wait_for(tmp_path, "Sleepy 3")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert runs(tmp_path).count("Append ! 1") == 1
    naps = [line for line in runs(tmp_path) if line.startswith("Sleepy")]
    assert len(naps) <= 13
    assert (tmp_path / "out/here/model/text.txt").read_text() == "ab!z"


def test_kill_9_loses_nothing_and_repeats_nothing_finished(tmp_path: Path) -> None:
    passes = {
        "append": {"type": "Append", "text": {"search": ["!", "?"]}},
        "nap": {"type": "Sleepy", "steps": {"search": [5, 6], "ordered": True}, "seconds": 0.1},
    }
    document = toy_document(
        tmp_path, passes=passes, systems={"here": {"type": "LocalSystem"}}, search_strategy={"max_trials": 4, "seed": 5}
    )
    path = write_workflow(tmp_path, document)
    for line in ("Sleepy 2", "Sleepy 5"):
        process = start_drupe("run", path, folder=tmp_path)
        wait_for(tmp_path, line)
        process.kill()
        process.communicate()
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    candidates = manifest(tmp_path)["targets"]["here"]["candidates"]
    assert [c["number"] for c in candidates] == [0, 1, 2, 3]
    assert len({tuple(c["point"].items()) for c in candidates}) == 4
    counts = [runs(tmp_path).count(f"Append {text} 1") for text in "!?"]
    assert counts == [1, 1]
    assert drupe("cache", "verify", tmp_path / "cache", folder=tmp_path).returncode == 0


def test_several_workers_share_steps_and_find_the_same_winner(tmp_path: Path) -> None:
    document = search_document(tmp_path, systems={"here": {"type": "LocalSystem", "in_process": True, "slots": 2}})
    goal(document, 0.5, confidence=0.95)
    document["search_strategy"] = {"max_trials": 4, "seed": 1, "workers": 2}
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    target = manifest(tmp_path)["targets"]["here"]
    winner = next(c for c in target["candidates"] if c["number"] == target["winner"])
    assert winner["point"]["append.times"] == 12
    steps = [line for line in runs(tmp_path) if line.startswith("Append")]
    assert len(steps) == len(set(steps)) == 4


def test_each_target_gets_its_own_best_model(tmp_path: Path) -> None:
    systems = {name: {"type": "LocalSystem", "in_process": True} for name in ("here", "there")}
    document = search_document(tmp_path, systems=systems, target=["here", "there"])
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(manifest(tmp_path)["targets"]) == {"here", "there"}
    assert (tmp_path / "out/there/model/text.txt").exists()
    assert len([line for line in runs(tmp_path) if line.startswith("Append")]) == 4


def test_an_output_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    document = toy_document(tmp_path, output_dir=str(tmp_path / "file" / "out"))
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 2
    assert "can't be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_runs_never_write_to_one_output_folder(tmp_path: Path) -> None:
    passes = {"nap": {"type": "Sleepy", "steps": 10, "seconds": 0.2}}
    path = write_workflow(tmp_path, toy_document(tmp_path, passes=passes))
    process = start_drupe("run", path, folder=tmp_path)
    wait_for(tmp_path, "Sleepy 0")
    done = drupe("run", path, folder=tmp_path)
    assert done.returncode == 2
    assert "another run is writing" in done.stderr
    assert process.wait(30) == 0

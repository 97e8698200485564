"""LMEvaluator: tasks of lm-evaluation-harness on sessions, beside what the harness's own model class gives."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.metrics import Metric
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Result, Session
from drupe.core.testing import MetricContract
from tests.plugins.metrics.sessions import configured, context, metric
from tests.plugins.metrics.test_real_sessions import opened

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'drupe[lm-eval]'")

PHRASES = [
    ("we danced all night", "joy"), ("something breathes below", "fear"), ("an owl in the closet", "surprise"),
    ("we buried the old dog", "sadness"), ("she took her first steps", "joy"), ("my hands shook", "fear"),
]  # fmt: skip
SHARED = """
dataset_path: json
dataset_kwargs: {data_files: {test: tone.jsonl}}
test_split: test
fewshot_split: test
doc_to_text: "Phrase: {{phrase}}\\nTone:"
"""
CHOICE = """
task: tone_choice
output_type: multiple_choice
doc_to_choice: [joy, fear, surprise, sadness]
doc_to_target: "{{tone}}"
num_fewshot: 1
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITTEN = """
task: tone_written
output_type: generate_until
doc_to_target: "{{tone}}"
num_fewshot: 2
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
filter_list:
  - {name: stripped, filter: [{function: remove_whitespace}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
TEXT = """
task: tone_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{phrase}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
JUDGED = """
task: tone_judged
output_type: multiple_choice
doc_to_choice: [joy, fear, surprise, sadness]
doc_to_target: "{{tone}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}
"""
GROUP = """
group: tone
task: [tone_choice, tone_judged]
aggregate_metric_list: [{metric: acc, weight_by_size: BY_SIZE}]
"""


def write_tasks(folder: Path, *, phrases: Sequence[tuple[str, str]] = PHRASES, by_size: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"phrase": phrase, "tone": tone}) for phrase, tone in phrases]
    (folder / "tone.jsonl").write_text("\n".join(lines) + "\n")
    for name, text in {"choice": CHOICE, "written": WRITTEN, "text": TEXT, "judged": JUDGED}.items():
        own = "" if name == "text" else SHARED
        shared = SHARED.replace(SHARED.splitlines()[-1], "") if name == "text" else ""
        (folder / f"{name}.yaml").write_text(own + shared + text)
    (folder / "group.yaml").write_text(GROUP.replace("BY_SIZE", str(by_size).lower()))
    return folder


class Knowing(Session):
    """One character a token. Every letter of the tone that belongs to the phrase asked about has log-probability -0.1,
    all else -1; what it generates is that tone."""

    capabilities = ("score", "generate")

    def __init__(self, wrong: Sequence[str] = ()) -> None:
        self.tones = {phrase: ("anger" if phrase in wrong else tone) for phrase, tone in PHRASES}
        self.lengths: list[int] = []

    def tokenize(self, text: str, *, special_tokens: bool = True) -> np.ndarray:
        return np.array([ord(c) for c in text], dtype=np.int64)

    def tone(self, prompt: str) -> str:
        asked = prompt.rpartition("Phrase: ")[2].partition("\n")[0]
        return self.tones.get(asked, "?")

    def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
        self.lengths.append(len(input_ids))
        text = "".join(map(chr, input_ids))
        right = text.endswith(self.tone(text.rpartition("Tone:")[0]))
        logprobs = np.where(labels == -100, np.nan, -0.1 if right else -1.0)
        logprobs[0] = np.nan
        return Result({"logprobs": logprobs, "greedy": (labels != -100) & right})

    def generate(self, prompt: str | np.ndarray, options: GenerateOptions) -> Result:
        text = "".join(map(chr, prompt)) if not isinstance(prompt, str) else prompt
        return Result({"text": (" " + self.tone(text))[: options.max_new_tokens + 5]})


@pytest.fixture
def model(tmp_path: Path) -> Model:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096, "eos_token_id": 10}))
    return Model.from_dir("hf", folder)


def values(made: Metric, rows: Mapping[str, tuple[float, ...]], config: Any) -> dict[str, float]:
    names = made.value_names(rows, config)
    return {name: made.aggregate(list(made.rows_of(rows, name, config).values()), name, config) for name in names}


def measured(
    model: Model, session: Session, folder: Path, tasks: Sequence[str], *, part: str | None = None, **config: Any
) -> tuple[dict[str, float], Metric, Any, Any, Any]:
    made = metric("LMEvaluator")
    surroundings = context(folder, part=part)
    checked = configured(made, tasks=list(tasks), include_path="tasks", **config)
    rows = made.measure(model, session, (), checked, surroundings)
    return values(made, rows, checked), made, rows, checked, surroundings


class TestLMEvaluator(MetricContract):
    name = "LMEvaluator"

    @pytest.fixture
    def session(self) -> Session:
        return Knowing(wrong=["my hands shook"])

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        return ()

    @pytest.fixture
    def config_values(self, tmp_path: Path) -> dict[str, Any]:
        return {"tasks": ["tone_choice", "tone_text"], "include_path": str(write_tasks(tmp_path / "tasks"))}

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text('{"eos_token_id": 10}')
        return Model.from_dir("hf", folder)

    @pytest.fixture
    def sub_type_names(self) -> Sequence[str]:
        return ("tone_choice-acc", "tone_text-word_perplexity")


def test_each_task_gives_its_values_with_a_row_per_document(model: Model, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    session = Knowing(wrong=["my hands shook"])
    found, made, rows, config, surroundings = measured(model, session, tmp_path, ["tone_choice", "tone_written"])
    assert found == pytest.approx(
        {"tone_choice-acc": 5 / 6, "tone_choice-acc_norm": 5 / 6, "tone_written-exact_match": 5 / 6}
    )
    part = made.rows_of(rows, "tone_choice-acc", config)
    assert {key: row[0] for key, row in part.items()} == {f"tone_choice/{i:05}": float(i != 5) for i in range(6)}
    assert made.sub_type("tone_choice-acc", config).proportion
    assert surroundings.report["lm_eval"]["tone_choice"]["acc_stderr"] == pytest.approx(math.sqrt(5 / 36 / 5))


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_is_weighted_as_the_harness_does_and_keeps_its_documents(
    model: Model, tmp_path: Path, by_size: bool
) -> None:
    write_tasks(tmp_path / "tasks", by_size=by_size)
    session = Knowing(wrong=["my hands shook"])
    found, made, rows, config, _ = measured(model, session, tmp_path, ["tone"])
    assert found["tone-acc"] == pytest.approx((found["tone_choice-acc"] + found["tone_judged-acc"]) / 2)
    assert len(made.rows_of(rows, "tone-acc", config)) == 12


def test_a_value_of_all_documents_at_once_has_no_row_per_document(model: Model, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    found, made, rows, config, _ = measured(model, Knowing(), tmp_path, ["tone_judged"])
    assert found["tone_judged-mcc"] == pytest.approx(1.0)
    assert list(made.rows_of(rows, "mcc", config)) == ["tone_judged-mcc"]
    assert not made.sub_type("mcc", config).paired or len(made.rows_of(rows, "acc", config)) == 6


def test_what_chooses_does_not_certify(model: Model, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    halves = []
    for part in ("selection", "certification"):
        _, made, rows, config, _ = measured(model, Knowing(), tmp_path, ["tone_choice"], part=part, limit=5)
        halves.append(set(made.rows_of(rows, "acc", config)))
    assert [len(half) for half in halves] == [3, 2]
    assert halves[0] | halves[1] == {f"tone_choice/{doc:05}" for doc in range(5)}


def test_long_prompts_lose_their_beginning_and_that_is_told(model: Model, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    session = Knowing()
    *_, surroundings = measured(model, session, tmp_path, ["tone_choice"], max_length=30)
    assert max(session.lengths) == 31
    assert any("lost their beginning" in note for note in surroundings.report["notes"])


def test_a_task_that_runs_python_needs_consent(model: Model, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    (folder / "coded.yaml").write_text(SHARED + CHOICE.replace('"{{tone}}"', "!function code.target"))
    with pytest.raises(ConfigError, match=r"code\.target.*--allow user-scripts"):
        measured(model, Knowing(), tmp_path, ["tone_choice"])


def test_a_template_does_not_reach_into_python(model: Model, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    text = (folder / "choice.yaml").read_text()
    (folder / "choice.yaml").write_text(text.replace("{{tone}}", "{{tone.__class__.__mro__}}"))
    with pytest.raises(EvaluationError, match="unsafe"):
        measured(model, Knowing(), tmp_path, ["tone_choice"])


def test_an_unknown_task_is_told_with_the_nearest(model: Model, tmp_path: Path) -> None:
    made = metric("LMEvaluator")
    config = configured(made, tasks=["arc_eazy"])
    with pytest.raises(ConfigError, match=r"'arc_eazy' is no task.*nearest:.*arc_easy"):
        made.measure(model, Knowing(), (), config, context(tmp_path))


def test_data_that_the_hub_does_not_give_is_told_with_task_and_data_set(model: Model, tmp_path: Path) -> None:
    made = metric("LMEvaluator")
    config = configured(made, tasks=["arc_easy"])
    with pytest.raises(EvaluationError, match=r"arc_easy needs the data set allenai/ai2_arc \(ARC-Easy\)"):
        made.measure(model, Knowing(), (), config, context(tmp_path))


def test_what_the_session_can_not_do_is_told_before_it_is_asked(model: Model, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    session = Knowing()
    session.capabilities = ("score",)
    with pytest.raises(EvaluationError, match="tone_written needs a model that can generate"):
        measured(model, session, tmp_path, ["tone_choice", "tone_written"])
    assert session.lengths == []


class Together(Knowing):
    """Takes so many sequences at once, and no more."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.most = most
        self.batches: list[list[int]] = []

    def score_batch(self, sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> Sequence[Result]:
        if len(sequences) > self.most:
            raise EvaluationError("out of memory\nand more")
        self.batches.append([len(ids) for ids, _ in sequences])
        return super().score_batch(sequences)


def test_sessions_that_do_not_tell_the_likeliest_tokens_are_asked_once(model: Model, tmp_path: Path) -> None:
    class Silent(Together):
        def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
            return Result({"logprobs": super().score(input_ids, labels).outputs["logprobs"]})

    write_tasks(tmp_path / "tasks")
    session = Silent()
    with pytest.raises(EvaluationError, match="do not tell which of the scored tokens are the likeliest"):
        measured(model, session, tmp_path, ["tone_choice"], batch_size=4)
    assert [len(batch) for batch in session.batches] == [4]


@pytest.mark.parametrize(("size", "most"), [(4, 4), ("auto", 6), ("auto:4", 6), (1, 1)])
def test_sequences_are_scored_in_batches_of_like_length(
    model: Model, tmp_path: Path, size: int | str, most: int
) -> None:
    write_tasks(tmp_path / "tasks")
    session = Together()
    found, *_, surroundings = measured(model, session, tmp_path, ["tone_choice", "tone_text"], batch_size=size)
    assert found["tone_choice-acc"] == 1.0
    assert max(map(len, session.batches)) == most
    assert max(map(max, session.batches)) == 87
    choice = [length for batch in session.batches for length in batch][: 4 * len(PHRASES)]
    assert choice == sorted(choice, reverse=True)
    assert "notes" not in surroundings.report


def test_a_batch_that_does_not_fit_is_halved_and_that_is_told(model: Model, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    session = Together(most=3)
    found, *_, surroundings = measured(model, session, tmp_path, ["tone_choice"], batch_size=12)
    assert found["tone_choice-acc"] == 1.0
    assert sum(map(len, session.batches)) == 4 * len(PHRASES)
    assert max(map(len, session.batches)) == 3
    assert surroundings.report["notes"] == [
        "12 sequences can't be scored at once, 6 are tried: out of memory",
        "6 sequences can't be scored at once, 3 are tried: out of memory",
    ]


@pytest.mark.parametrize("size", [0, -1, "car", "auto:x"])
def test_a_batch_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(ValidationError):
        configured(metric("LMEvaluator"), tasks=["a"], batch_size=size)


@pytest.fixture(scope="module")
def talker(tiny_llama_dir: Path) -> Iterator[tuple[Model, Session]]:
    model = Model.from_dir("hf", tiny_llama_dir, {"task": "text-generation"})
    with opened("hf", model) as session:
        yield model, session


def test_the_hf_runtime_gives_what_the_harness_gives_with_its_own_class(
    talker: tuple[Model, Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it scores in batches."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, session = talker
    folder = write_tasks(tmp_path / "tasks")
    tasks = ["tone_choice", "tone_written", "tone_text"]
    found, *_ = measured(model, session, tmp_path, tasks, max_length=64)
    monkeypatch.chdir(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    own = HFLM(pretrained=str(model.folder), device="cpu", dtype="float32", max_length=64, batch_size=3)
    wanted = simple_evaluate(own, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    assert wanted is not None
    results = {
        f"{task}-{key.partition(',')[0]}": value
        for task, given in wanted["results"].items()
        for key, value in given.items()
        if "," in key and "stderr" not in key
    }
    assert found == pytest.approx(results, rel=1e-4)
    batched, *_ = measured(model, session, tmp_path, tasks, max_length=64, batch_size="auto")
    assert batched == pytest.approx(found, rel=1e-5)

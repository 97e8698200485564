"""MTEBEvaluator: tasks of MTEB on sessions, beside what Sentence Transformers gives for the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.data import Sample
from drupe.core.errors import ConfigError, DrupeError, EvaluationError
from drupe.core.metrics import Metric, Rows
from drupe.core.model import Model
from drupe.core.runtimes import Result, Session
from drupe.core.testing import MetricContract
from tests.plugins.metrics.sessions import configured, context, metric
from tests.plugins.metrics.test_real_sessions import opened
from tests.support.workflows import drupe, write_workflow

SCRIPT = Path(__file__).with_name("embedding_tasks.py")


@pytest.mark.parametrize(
    "wrong", [{"tasks": []}, {"tasks": ["A", "A"]}, {"batch_size": 0}, {"pooling": "sum"}, {"task": ["A"]}]
)
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        configured(metric("MTEBEvaluator"), **{"tasks": ["A"], **wrong})


@pytest.mark.parametrize(("name", "direction"), [("STS17-main_score", "higher"), ("X-rmse", "lower")])
def test_the_direction_is_known_before_measuring(name: str, direction: str) -> None:
    made = metric("MTEBEvaluator")
    assert made.sub_type(name, configured(made, tasks=["STS17", "X"])).direction == direction
    turned = configured(made, tasks=["STS17", "X"], higher_is_better={name: direction == "lower"})
    assert made.sub_type(name, turned).direction != direction


pytest.importorskip("mteb", reason="mteb is not installed: pip install 'drupe[mteb]'")


@pytest.fixture(scope="module")
def encoder(tiny_bert_dir: Path) -> Iterator[tuple[Model, Session]]:
    model = Model.from_dir("hf", tiny_bert_dir, {"task": "feature-extraction"})
    with opened("hf", model) as session:
        yield model, session


@pytest.fixture(scope="module")
def graph(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A graph that gives each token the vector of its row in a table, with the tokenizer beside it."""
    import onnx

    folder = tmp_path_factory.mktemp("graph")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert_dir / name, folder / name)
    table = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        "g (int64[batch, length] input_ids, int64[batch, length] attention_mask) "
        "=> (float[batch, length, 8] last_hidden_state) { last_hidden_state = Gather(table, input_ids) }"
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    onnx.save(made, folder / "model.onnx")
    return Model.from_dir("onnx", folder, {"onnx_file": "model.onnx"})


def measured(
    model: Model, session: Session, folder: Path, tasks: Sequence[str], **config: Any
) -> tuple[dict[str, float], Any]:
    made = metric("MTEBEvaluator")
    surroundings = context(folder, allow=frozenset({"user-scripts"}))
    checked = configured(made, tasks=list(tasks), **{"user_script": str(SCRIPT), **config})
    rows = made.measure(model, session, (), checked, surroundings)
    found = {}
    for name in made.value_names(rows, checked):
        found[name] = made.aggregate(list(made.rows_of(rows, name, checked).values()), name, checked)
    return found, surroundings


class TestMTEBEvaluator(MetricContract):
    name = "MTEBEvaluator"

    @pytest.fixture
    def model(self, encoder: tuple[Model, Session]) -> Model:
        return encoder[0]

    @pytest.fixture
    def session(self, encoder: tuple[Model, Session]) -> Session:
        return encoder[1]

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        return ()

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"tasks": ["PairsSTS"], "user_script": str(SCRIPT)}

    @pytest.fixture
    def sub_type_names(self) -> Sequence[str]:
        return ("PairsSTS-main_score", "test_default")

    @pytest.fixture
    def rows(self, subject: Metric, model: Model, session: Session, config: Any, tmp_path: Path) -> Rows:
        return subject.measure(model, session, (), config, context(tmp_path, allow=frozenset({"user-scripts"})))


def test_every_kind_of_task_gives_its_values(encoder: tuple[Model, Session], tmp_path: Path) -> None:
    found, surroundings = measured(*encoder, tmp_path, ["PairsSTS", "Topics", "FindThem"])
    assert found["PairsSTS-main_score"] == found["PairsSTS-cosine_spearman"]
    assert found["PairsSTS-main_score"] == pytest.approx(
        (found["PairsSTS-dev_default"] + found["PairsSTS-test_default"]) / 2
    )
    assert found["Topics-main_score"] == found["Topics-accuracy"] >= 0.25
    assert 0 < found["FindThem-ndcg_at_10"] <= 1
    assert surroundings.report["mteb"]["Topics"]["scores"]["test"][0]["accuracy"] == found["Topics-accuracy"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_an_hf_encoder_gives_what_sentence_transformers_gives(
    encoder: tuple[Model, Session], tmp_path: Path, pooling: str
) -> None:
    """The pooling is that of the files beside the model."""
    import mteb
    from sentence_transformers import SentenceTransformer, models

    from tests.plugins.metrics import embedding_tasks

    model, session = encoder
    words = models.Transformer(str(model.folder))
    pooled = models.Pooling(words.get_word_embedding_dimension(), pooling_mode=pooling)
    SentenceTransformer(modules=[words, pooled, models.Normalize()], device="cpu").save(str(tmp_path / "st"))
    shutil.copytree(model.folder, tmp_path / "own", ignore=shutil.ignore_patterns("1_Pooling"))
    shutil.copytree(tmp_path / "st" / "1_Pooling", tmp_path / "own" / "1_Pooling")
    ours = Model.from_dir("hf", tmp_path / "own", model.attributes)
    found, surroundings = measured(ours, session, tmp_path, ["PairsSTS"], eval_splits=["test"])
    theirs = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    task = embedding_tasks.PairsSTS().filter_eval_splits(["test"])
    wanted = mteb.evaluate(theirs, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]
    assert found["PairsSTS-main_score"] == pytest.approx(wanted.main_score, abs=1e-6)
    assert "PairsSTS-dev_default" not in found
    assert surroundings.report["notes"][-1].startswith(f"embeddings: {pooling} of the tokens")


def test_a_graph_that_embeds_is_measured(graph: Model, tmp_path: Path) -> None:
    with opened("onnx", graph) as session:
        found, _ = measured(graph, session, tmp_path, ["FindThem"], batch_size=3)
        same, _ = measured(graph, session, tmp_path, ["FindThem"], batch_size=1)
        cut, _ = measured(graph, session, tmp_path, ["FindThem"], max_length=3, pooling="last")
    assert found == pytest.approx(same)
    assert found["FindThem-main_score"] > 0.6
    assert cut["FindThem-main_score"] < found["FindThem-main_score"]


class Fixed(Session):
    """Takes two texts of eight tokens, no more and no less."""

    def __init__(self, outputs: str = "sentence_embedding", value: float = 1.0) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.outputs, self.value = outputs, value

    def input_shapes(self) -> dict[str, tuple[tuple[int | str, ...], str]]:
        return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "position_ids"), ((2, 8), "int64"))

    def forward(self, batch: Any) -> Result:
        self.shapes += [value.shape for value in batch.values()]
        ids = batch["input_ids"].astype(np.float64)
        return Result({self.outputs: np.stack([ids.sum(1), (ids**2).sum(1), ids[:, 1]], 1) * self.value})


def test_a_graph_of_fixed_sizes_gets_them(encoder: tuple[Model, Session], tmp_path: Path) -> None:
    session = Fixed()
    measured(encoder[0], session, tmp_path, ["PairsSTS"], batch_size=5)
    assert set(session.shapes) == {(2, 8)}


@pytest.mark.parametrize(
    ("session", "tasks", "config", "message"),
    [
        (Fixed(), ["PairSTS"], {}, "'PairSTS' is no task of mteb; nearest: PairsSTS"),
        (Fixed(), ["NotThere"], {}, "NotThere needs the data set local/sentences, which can't be had here: no route"),
        (Fixed(), ["Pictures"], {}, "task Pictures is of image; texts are embedded"),
        (Fixed(), ["PairsSTS"], {"eval_splits": ["train"]}, "PairsSTS has none of train; it has dev, test"),
        (Fixed(), ["PairsSTS"], {"eval_subsets": ["de"]}, "PairsSTS has none of de; it has default"),
        (Fixed(), ["PairsSTS"], {"user_script": "nowhere.py"}, "nowhere.py does not exist; it should define the tasks"),
        (Fixed(), ["PairsSTS"], {"output": "pooled"}, "the model has no output 'pooled'; it has: sentence_embedding"),
        (Fixed(value=float("nan")), ["PairsSTS"], {}, "embeddings with NaN or infinite numbers"),
        (Fixed("logits"), ["PairsSTS"], {}, "the model gives logits and no embedding"),
    ],
)
def test_what_can_not_be_done_is_one_message(
    encoder: tuple[Model, Session], tmp_path: Path, session: Session, tasks: list[str], config: Any, message: str
) -> None:
    with pytest.raises(DrupeError) as raised:
        measured(encoder[0], session, tmp_path, tasks, **config)
    assert message in str(raised.value)


def test_a_script_needs_consent(encoder: tuple[Model, Session], tmp_path: Path) -> None:
    made = metric("MTEBEvaluator")
    config = configured(made, tasks=["PairsSTS"], user_script=str(SCRIPT))
    with pytest.raises(ConfigError, match="--allow user-scripts"):
        made.measure(encoder[0], encoder[1], (), config, context(tmp_path))


def test_a_value_that_no_task_gives_is_told(encoder: tuple[Model, Session]) -> None:
    made = metric("MTEBEvaluator")
    rows = {"PairsSTS-main_score": (0.5,)}
    with pytest.raises(EvaluationError, match="no value named 'f1'; there are PairsSTS-main_score"):
        made.rows_of(rows, "f1", configured(made, tasks=["PairsSTS"]))


@pytest.mark.full
@pytest.mark.slow
def test_a_workflow_exports_quantizes_and_measures_an_encoder(tiny_bert_dir: Path, tmp_path: Path) -> None:
    """As Olive's files write it: an evaluator with a type."""
    document = {
        "input_model": {"type": "HfModel", "model_path": str(tiny_bert_dir), "task": "feature-extraction"},
        "evaluators": {
            "judge": {
                "type": "MTEBEvaluator",
                "tasks": ["FindThem", "PairsSTS"],
                "batch_size": 4,
                "model_class": "ort",
                "user_script": str(SCRIPT),
            }
        },
        "evaluator": "judge",
        "passes": {"convert": {"type": "OnnxConversion"}, "q": {"type": "OnnxDynamicQuantization"}},
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "out"),
    }
    done = drupe("run", write_workflow(tmp_path, document), "--allow", "user-scripts", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "drupe.json").read_text())["targets"]["local_system"]["certification"]
    assert 0 < found["MTEBEvaluator-FindThem-main_score"]["value"] < 1
    assert found["MTEBEvaluator-FindThem-main_score"]["interval"] is None
    assert -1 <= found["MTEBEvaluator-PairsSTS-test_default"]["value"] <= 1

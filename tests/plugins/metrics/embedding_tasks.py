"""Tasks on MTEB's task classes with data of their own, as a user's script brings them."""

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

SENTENCES = [
    "a dog runs in the park", "a hound runs across a park", "the stock market fell today", "shares dropped today",
    "she plays the violin", "a woman makes music", "rain is expected tomorrow", "tomorrow will be wet",
]  # fmt: skip


def about(name: str, kind: Any, score: str, **more: Any) -> TaskMetadata:
    given = {"eval_splits": ["test"], "eval_langs": ["eng-Latn"], "modalities": ["text"], **more}
    return TaskMetadata(
        name=name,
        description="Sentences in pairs.",
        type=kind,
        main_score=score,
        category="t2t",
        dataset={"path": "local/sentences", "revision": "1"},
        **given,
    )


class PairsSTS(AbsTaskSTS):  # type: ignore[misc]
    metadata = about("PairsSTS", "STS", "cosine_spearman", eval_splits=["dev", "test"])
    min_score, max_score = 0, 5

    def load_data(self, **kwargs: Any) -> None:
        rows = [(a, b, 5.0 - abs(i - j)) for i, a in enumerate(SENTENCES) for j, b in enumerate(SENTENCES) if i < j]
        columns = dict(zip(("sentence1", "sentence2", "score"), map(list, zip(*rows, strict=True)), strict=True))
        data = Dataset.from_dict(columns)
        self.dataset = DatasetDict(test=data, dev=data.select(range(10)))
        self.data_loaded = True


class Topics(AbsTaskClassification):  # type: ignore[misc]
    metadata = about("Topics", "Classification", "accuracy")
    n_experiments = 2
    samples_per_label = 2

    def load_data(self, **kwargs: Any) -> None:
        data = Dataset.from_dict({"text": SENTENCES, "label": [0, 0, 1, 1, 2, 2, 3, 3]})
        self.dataset = DatasetDict(train=data, test=data)
        self.data_loaded = True


class FindThem(AbsTaskRetrieval):  # type: ignore[misc]
    metadata = about("FindThem", "Retrieval", "ndcg_at_10")

    def load_data(self, **kwargs: Any) -> None:
        corpus = Dataset.from_dict({"id": [f"d{i}" for i in range(8)], "title": [""] * 8, "text": SENTENCES})
        queries = Dataset.from_dict({"id": [f"q{i}" for i in range(4)], "text": SENTENCES[::2]})
        wanted = {f"q{i}": {f"d{2 * i}": 1, f"d{2 * i + 1}": 1} for i in range(4)}
        split = {"corpus": corpus, "queries": queries, "relevant_docs": wanted, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class NotThere(AbsTaskSTS):  # type: ignore[misc]
    metadata = about("NotThere", "STS", "cosine_spearman")

    def load_data(self, **kwargs: Any) -> None:
        raise ConnectionError("no route to the hub")


class Pictures(AbsTaskClassification):  # type: ignore[misc]
    metadata = about("Pictures", "Classification", "accuracy", modalities=["image"])

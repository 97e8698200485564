"""MTEBEvaluator: tasks of the Massive Text Embedding Benchmark on a model that any runtime serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from drupe.core.config import FileRef
from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.plugins.metrics.every_name import EveryName
from drupe.plugins.metrics.task_config import TasksConfig

__all__ = ["MTEBEvaluator", "MTEBEvaluatorConfig"]

_LOWER = ("mae", "mse", "rmse")
"""Scores of MTEB's regression tasks that are errors; its others are better when they are higher."""


class MTEBEvaluatorConfig(TasksConfig):
    """Which tasks, and what of a model's outputs is the embedding."""

    tasks: list[str] = Field(min_length=1, description="Tasks of MTEB by their names, such as STS17.")
    batch_size: int = Field(32, ge=1, description="Texts that are embedded at once.")
    max_length: int | None = Field(
        None,
        ge=1,
        description="Tokens of a text at most, by default as the model's own files say; longer texts lose their end.",
    )
    eval_splits: list[str] | None = Field(
        None, min_length=1, description="The splits of the tasks' data to evaluate on; by default the tasks' own."
    )
    eval_subsets: list[str] | None = Field(
        None, min_length=1, description="The subsets (languages, say) to evaluate on; by default all."
    )
    output: str | None = Field(
        None, description="The output that holds the embedding; by default as embedding_similarity finds it."
    )
    pooling: Literal["mean", "cls", "max", "last"] | None = Field(
        None,
        description="How an output with a vector per token becomes one vector; by default as 1_Pooling/config.json "
        "beside the model says, else the mean.",
    )
    normalize: bool = Field(True, description="Scale embeddings to length 1.")
    user_script: FileRef | None = Field(
        None,
        description="A Python file whose classes on mteb's task classes are tasks too; needs --allow user-scripts.",
    )
    script_dir: FileRef | None = Field(None, description="A folder that the script imports from.")
    higher_is_better: bool | dict[str, bool] | None = Field(
        None, description="The direction, for all or by value; by default higher, and lower for mae, mse and rmse."
    )


class MTEBEvaluator(Metric):
    """Values: "TASK-main_score" and "TASK-SCORE" (STS17-cosine_spearman), the means over splits and subsets, and
    "TASK-SPLIT_SUBSET" (STS17-test_en-de), a subset's main score; with one task, what follows it alone will do.
    Rows: (score,), one for each value: MTEB gives none per text.

    The tasks and their scores are MTEB's (Muennighoff et al. 2023, arXiv 2210.07316).
    """

    Config = MTEBEvaluatorConfig
    version = 1
    sub_types = EveryName(lambda name: SubType("", _direction(name, None), paired=False))
    names_values: ClassVar[bool] = True

    def sub_type(self, name: str, config: MTEBEvaluatorConfig) -> SubType:
        """See Metric.sub_type."""
        told = config.higher_is_better
        higher = told.get(name, told.get(_full(name, config))) if isinstance(told, Mapping) else told
        return SubType("", _direction(name, higher), paired=False)

    def value_names(self, rows: Rows, config: MTEBEvaluatorConfig) -> Sequence[str]:
        """See Metric.value_names."""
        return tuple(rows)

    def rows_of(self, rows: Rows, sub_type: str, config: MTEBEvaluatorConfig) -> Rows:
        """See Metric.rows_of: the one row that holds the score."""
        full = _full(sub_type, config)
        if full not in rows:
            raise EvaluationError(f"the tasks gave no value named {sub_type!r}; there are {', '.join(rows)}")
        return {full: rows[full]}

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: MTEBEvaluatorConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure. The data of all tasks are looked at before the model is asked anything."""
        assert session is not None
        _require_library()
        from drupe.plugins.metrics.mteb_model import SessionEncoder
        from drupe.plugins.metrics.mteb_tasks import load_tasks, scores_of

        tasks = load_tasks(config, context)
        encoder = SessionEncoder(session, model.folder, config, context.progress)
        context.report.setdefault("notes", []).append(encoder.note)
        rows: dict[str, tuple[float, ...]] = {}
        report = context.report.setdefault("mteb", {})
        for task in tasks:
            scores, told = scores_of(task, encoder, config)
            rows |= {f"{task.metadata.name}-{name}": (value,) for name, value in scores.items()}
            report[task.metadata.name] = told
        return rows

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: MTEBEvaluatorConfig) -> float:
        """See Metric.aggregate."""
        return rows[0][0]


def _direction(name: str, higher: bool | None) -> Literal["lower", "higher"]:
    better = name.rpartition("-")[2] not in _LOWER if higher is None else higher
    return "higher" if better else "lower"


def _full(name: str, config: MTEBEvaluatorConfig) -> str:
    """Return a value's full name: a task's values may go without it where there is one task."""
    (first, *others) = config.tasks
    return name if others or name.startswith(f"{first}-") else f"{first}-{name}"


def _require_library() -> None:
    from importlib.util import find_spec

    if find_spec("mteb") is None:
        raise EvaluationError("MTEBEvaluator needs mteb>=2.26, which is not installed; pip install 'drupe[mteb]'")

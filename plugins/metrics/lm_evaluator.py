"""LMEvaluator: tasks of EleutherAI's lm-evaluation-harness on a model that any runtime serves."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from drupe.core.config import FileRef
from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.digests import digest_of
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.plugins.metrics.config import note
from drupe.plugins.metrics.every_name import EveryName
from drupe.plugins.metrics.harness_tasks import load_tasks, require_harness, sandboxed_templates
from drupe.plugins.metrics.harness_values import aggregated, found_in, named_sub_type, part_of
from drupe.plugins.metrics.task_config import TasksConfig

__all__ = ["LMEvaluator", "LMEvaluatorConfig"]

_SEED = 1234
"""Of the few-shot sampler: the harness's own default, so that prompts are those of published numbers."""


class LMEvaluatorConfig(TasksConfig):
    """Which tasks, and how their prompts are made."""

    tasks: list[str] = Field(min_length=1, description="Tasks, groups or tags of lm-eval, by their names.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before each question; by default the task's own.")
    limit: float | None = Field(
        None, gt=0, description="Documents per task: so many, or below 1 that share; an estimate only."
    )
    batch_size: int | str = Field(
        1,
        description='Sequences that are scored at once, or "auto": up to 64 that hold 512 tokens (on a CPU) together. '
        "Values differ by rounding at most. Texts are generated one at a time.",
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="Tokens that the model sees at most, by default its context; prompts are cut on the left.",
    )
    include_path: FileRef | None = Field(
        None, description="A folder of task files (YAML) of your own; their relative data files are looked for there."
    )
    apply_chat_template: bool = Field(False, description="Write prompts by the chat template of the model's tokenizer.")
    fewshot_as_multiturn: bool = Field(False, description="Give few-shot examples as turns of the chat.")
    system_instruction: str | None = Field(None, description="Stands before every prompt.")
    higher_is_better: bool | dict[str, bool] | None = Field(
        None, description="The direction, for all or by value; by default the harness's own."
    )

    @field_validator("batch_size", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not number and not re.fullmatch(r"auto(:[0-9.]+)?", str(value)):
            raise ValueError(f'{value!r} is no size of a batch; expected a whole number of at least 1, or "auto"')
        return value

    @field_validator("limit")
    @classmethod
    def _whole_above_one(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError(f"limit is {value}; expected a whole number of documents, or a share below 1")
        return value


class LMEvaluator(Metric):
    """Values: "TASK-METRIC" (arc_easy-acc_norm), and "TASK-METRIC,FILTER" where a task has several filters; with one
    task, "METRIC" alone will do. Rows: see `harness_values`.

    The tasks' prompts, answers and scores are the harness's (https://github.com/EleutherAI/lm-evaluation-harness).
    """

    Config = LMEvaluatorConfig
    version = 2
    sub_types = EveryName(named_sub_type)
    names_values: ClassVar[bool] = True
    own_data: ClassVar[bool] = True

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self._found: Mapping[str, SubType] = {}

    def needs(self, config: LMEvaluatorConfig) -> Sequence[str]:
        """See Metric.needs."""
        return ("score", "generate")

    def sub_type(self, name: str, config: LMEvaluatorConfig) -> SubType:
        """See Metric.sub_type: as the harness says once it has measured, before that by the name."""
        full = _full(name, config)
        if full in self._found:
            return self._found[full]
        told = config.higher_is_better
        return named_sub_type(full, told.get(name, told.get(full)) if isinstance(told, Mapping) else told)

    def value_names(self, rows: Rows, config: LMEvaluatorConfig) -> Sequence[str]:
        """See Metric.value_names."""
        return tuple(self._found)

    def rows_of(self, rows: Rows, sub_type: str, config: LMEvaluatorConfig) -> Rows:
        """See Metric.rows_of: of the tasks' documents those that the value counts, as (value, weight, kind)."""
        found = part_of(rows, _full(sub_type, config))
        if not found:
            there = f"; there are {', '.join(self._found)}" if self._found else ""
            raise EvaluationError(f"the tasks gave no value named {sub_type!r}{there}")
        return found

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: LMEvaluatorConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure. All tasks are loaded before the model is asked anything."""
        assert session is not None
        require_harness()
        folder = None
        if config.include_path is not None:
            folder = ((context.workflow_dir or Path()) / config.include_path).expanduser().resolve()
        with sandboxed_templates():
            loaded = load_tasks(config.tasks, folder, context)
            _set_up(loaded["tasks"], config)
            _check_session(loaded["tasks"], session)
            results, truncated, limit = _evaluated(loaded, model, session, config, context)
        if truncated:
            note(f"{truncated} prompts were longer than {limit} tokens and lost their beginning", context)
        found = found_in(results, loaded["tasks"], loaded["groups"])
        self._found = found.sub_types
        context.report["lm_eval"] = {name: dict(values) for name, values in found.summary.items()}
        return found.rows

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: LMEvaluatorConfig) -> float:
        """See Metric.aggregate. rows: what `rows_of` gave."""
        return aggregated(rows)


def _full(name: str, config: LMEvaluatorConfig) -> str:
    """Return a value's full name: one task's value may go by its metric alone."""
    alone = len(config.tasks) == 1 and "-" not in name.partition(",")[0]
    return f"{config.tasks[0]}-{name}" if alone else name


def _set_up(tasks: Mapping[str, Any], config: LMEvaluatorConfig) -> None:
    """Number of examples and seeds, as the harness's own `simple_evaluate` sets them."""
    import random

    import numpy as np

    random.seed(0)
    np.random.seed(_SEED)
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if config.num_fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=config.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)


def _check_session(tasks: Mapping[str, Any], session: Session) -> None:
    for name, task in tasks.items():
        wanted = "generate" if task.OUTPUT_TYPE == "generate_until" else "score"
        if wanted not in session.capabilities:
            raise EvaluationError(
                f"task {name} needs a model that can {wanted}; this one can {', '.join(session.capabilities)}"
            )


def _half(tasks: Mapping[str, Any], config: LMEvaluatorConfig, context: JobContext) -> dict[str, list[int]] | None:
    """Return task → documents of the half that selects or certifies, by digests; None for all documents."""
    if context.part not in ("selection", "certification"):
        return None
    from lm_eval.evaluator_utils import get_sample_size

    found = {}
    for name, task in tasks.items():
        count = len(task.eval_docs)
        limit = min(count, get_sample_size(task, config.limit) or count)
        order = sorted(range(limit), key=lambda doc: digest_of(f"{context.seed} {name} {doc}"))
        half = order[: (limit + 1) // 2] if context.part == "selection" else order[(limit + 1) // 2 :]
        if not half:
            raise EvaluationError(f"task {name} has {limit} documents: too few to choose on some and certify on others")
        found[name] = sorted(half)
    return found


def _evaluated(
    loaded: Mapping[str, Any], model: Model, session: Session, config: LMEvaluatorConfig, context: JobContext
) -> tuple[Mapping[str, Any], int, int]:
    from lm_eval.evaluator import evaluate

    from drupe.plugins.metrics.harness_model import SessionLM

    asked = SessionLM(
        session,
        model.folder,
        max_length=config.max_length,
        # "auto:4" asks the harness to look for the largest batch four times over; here each batch is fitted anew.
        batch_size=config.batch_size if isinstance(config.batch_size, int) else "auto",
        device=context.accelerator.device,
        seed=context.seed,
        progress=context.progress,
        note=lambda text: note(text, context),
    )
    chosen = _half(loaded["tasks"], config, context)
    try:
        # What it prints is no result; and its standard errors need no processes of their own beside a loaded model.
        with contextlib.redirect_stdout(sys.stderr), _one_process():
            results = evaluate(
                asked,
                dict(loaded),
                limit=config.limit if chosen is None else None,
                samples=chosen,
                log_samples=True,
                bootstrap_iters=1000,
                system_instruction=config.system_instruction,
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=config.fewshot_as_multiturn,
                confirm_run_unsafe_code=True,  # consent was asked for as the tasks were loaded
            )
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise EvaluationError(f"lm-eval could not evaluate {', '.join(config.tasks)}: {error}") from error
    if results is None:
        raise EvaluationError("lm-eval gave no results; it takes itself for one of several processes (LOCAL_RANK)")
    return results, asked.truncated, asked.max_length


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before

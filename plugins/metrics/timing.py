"""Times calls: warmed up, interleaved with the baseline, by the device's clock where it has one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.runtimes import GenerateOptions, Session
from drupe.plugins.metrics.batches import Batch, batches, made_up_batch
from drupe.plugins.metrics.config import FORWARD_ONLY, DataMetricConfig, flattened

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Call", "TimedMetricConfig", "repeated"]

_COUNTS = ("warmup_num", "repeat_test_num", "sleep_num")
"""What Olive's files say in the metric_config of sub-types."""
_MADE_UP_PROMPT = "Once upon a time"


class TimedMetricConfig(DataMetricConfig):
    """How often calls are timed, and of what kind they are."""

    mode: str = Field(
        "auto",
        pattern="^(auto|generate|forward)$",
        description="generate: a whole answer to a prompt; forward: one batch. auto: generate where the runtime can "
        "and the samples are text, else forward.",
    )
    warmup_num: int = Field(10, ge=0, description="Calls before the timed ones.")
    repeat_test_num: int = Field(20, ge=1, description="Timed calls.")
    sleep_num: float = Field(0, ge=0, description="Seconds to rest between timed calls.")
    max_new_tokens: int = Field(32, ge=1, description="Longest generated answer.")
    stop: list[str] = Field(default_factory=list, description="Where a generated answer ends besides its end token.")

    @model_validator(mode="before")
    @classmethod
    def _of_sub_types(cls, values: Any) -> Any:
        """Take what metric_config says, flat or by sub-type: the same calls give all values."""
        values = flattened(values)
        if not isinstance(values, Mapping) or not isinstance(values.get("metric_config"), Mapping):
            return values
        rest = {key: value for key, value in values.items() if key != "metric_config"}
        for name, value in values["metric_config"].items():
            for key, number in (value if isinstance(value, Mapping) else {name: value}).items():
                if key not in _COUNTS:
                    raise ValueError(f"metric_config: unknown option {key!r}; known: {', '.join(_COUNTS)}")
                if rest.setdefault(key, number) != number:
                    raise ValueError(
                        f"metric_config: {key} is {number!r} and {rest[key]!r}; the same calls give all sub-types, so "
                        "say it once, or make it another metric"
                    )
        return rest

    def without_effect(self) -> Mapping[str, str]:
        """See DataMetricConfig."""
        found = {"post_processing_func": "the outputs of timed calls are not looked at"}
        if self.mode == "generate":
            found |= dict.fromkeys(FORWARD_ONLY, "answers are generated to one prompt after the other")
        if self.mode == "forward":
            found |= dict.fromkeys(("max_new_tokens", "stop"), "nothing is generated")
        return found

    def wanted(self) -> Sequence[str]:
        """Return the capabilities of which a session must have one."""
        return ("generate", "forward") if self.mode == "auto" else (self.mode,)


@dataclass(frozen=True)
class Call:
    """One timed call: seconds in all, seconds to the first output, how much came out (tokens, or samples)."""

    seconds: float
    first: float
    amount: int


def repeated(
    session: Session,
    samples: Sequence[Sample],
    config: TimedMetricConfig,
    context: JobContext,
    baseline: Session | None = None,
) -> list[tuple[Call, Call | None]]:
    """Return the timed calls, each beside the baseline's call on the same input where there is a baseline session.

    The two take turns in going first, so that neither profits from what the other left warm.
    """
    generates = _generates(session, samples, config)
    own = _caller(session, samples, config, context, generates)
    other = _caller(baseline, samples, config, context, generates) if baseline is not None else None
    for index in range(config.warmup_num):
        context.raise_if_cancelled()
        own(index)
        if other is not None:
            other(index)
    calls: list[tuple[Call, Call | None]] = []
    for index in range(config.repeat_test_num):
        context.progress(index, config.repeat_test_num, "timing")
        if config.sleep_num:
            time.sleep(config.sleep_num)
        if other is None:
            calls.append((own(index), None))
        elif index % 2:
            second = other(index)
            calls.append((own(index), second))
        else:
            calls.append((own(index), other(index)))
    return calls


def _caller(
    session: Session, samples: Sequence[Sample], config: TimedMetricConfig, context: JobContext, generates: bool
) -> Callable[[int], Call]:
    """Return what makes the call number i, on the i-th input in turn."""
    if generates:
        prompts = [_prompt(sample) for sample in samples] or [_MADE_UP_PROMPT]
        options = GenerateOptions(max_new_tokens=config.max_new_tokens, stop=tuple(config.stop), seed=context.seed)
        return lambda index: _generation(session, prompts[index % len(prompts)], options)
    if samples or config.dataloader_func:
        # Loaders that time a model often have no end; more batches than calls would never be seen.
        calls = max(config.warmup_num, config.repeat_test_num)
        prepared = list(itertools.islice(batches(session, samples, config, context), calls))
    else:
        prepared = [made_up_batch(session, config, context, context.seed)]
    return lambda index: _forward(session, prepared[index % len(prepared)])


def _generates(session: Session, samples: Sequence[Sample], config: TimedMetricConfig) -> bool:
    if config.mode != "auto":
        return config.mode == "generate"
    if config.dataloader_func is not None or "generate" not in session.capabilities:
        return False
    return not samples or "prompt" in samples[0].inputs or "forward" not in session.capabilities


def _prompt(sample: Sample) -> str | np.ndarray:
    for name in ("prompt", "text", "input_ids"):
        if name in sample.inputs:
            return sample.inputs[name]
    raise EvaluationError(f"sample {sample.id} has neither prompt, text nor input_ids to generate from")


def _generation(session: Session, prompt: str | np.ndarray, options: GenerateOptions) -> Call:
    import numpy as np

    started = time.perf_counter()
    result = session.generate(prompt, options)
    elapsed = time.perf_counter() - started
    seconds = result.device_seconds if result.device_seconds is not None else elapsed
    token_seconds = np.asarray(result.outputs.get("token_seconds", ()), dtype=float)
    tokens = len(result.outputs["token_ids"])
    return Call(seconds, float(token_seconds[0]) if len(token_seconds) else seconds, tokens)


def _forward(session: Session, batch: Batch) -> Call:
    started = time.perf_counter()
    result = session.forward(batch.inputs)
    elapsed = time.perf_counter() - started
    seconds = result.device_seconds if result.device_seconds is not None else elapsed
    return Call(seconds, seconds, _samples_of(batch))


def _samples_of(batch: Batch) -> int:
    first = next(iter(batch.inputs.values()), None)
    return len(first) if batch.whole and first is not None and first.ndim else len(batch.ids)

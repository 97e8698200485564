"""OrtSessionParamsTuning: the session options with which a graph runs fastest here, measured beside the defaults."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.core.passes import Pass
from drupe.plugins.onnx.calibration import DataSourceConfig, calibration_batches, input_shapes
from drupe.plugins.onnx.graphs import graph_paths
from drupe.plugins.onnx.made_up import made_up_batch

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OrtSessionParamsTuning", "OrtSessionParamsTuningConfig"]

_MODES = {"ORT_SEQUENTIAL": 0, "ORT_PARALLEL": 1, "sequential": 0, "parallel": 1}
_OF_GENAI = ("intra_op_num_threads", "enable_cpu_mem_arena")
"""Options that are tried and written for onnxruntime-genai."""
Options = Mapping[str, Any]


class OrtSessionParamsTuningConfig(DataSourceConfig):
    """What is tried, and how it is measured."""

    intra_thread_num_list: list[int] | None = Field(
        None, description="Threads inside an operator that are tried; default: 1, 2, 4, … up to the job's CPUs."
    )
    inter_thread_num_list: list[int] | None = Field(
        None, description="Threads between operators that are tried in parallel mode; default: 1 and half the CPUs."
    )
    execution_mode_list: list[int | str] | None = Field(
        None, description="ORT_SEQUENTIAL (0) and ORT_PARALLEL (1); default: both, parallel only with two CPUs or more."
    )
    opt_level_list: list[Literal[0, 1, 2, 99]] = Field(
        default=[99], min_length=1, description="Graph optimization levels that are tried."
    )
    arena_list: list[bool] = Field(
        default=[True, False], min_length=1, description="Whether memory is kept in an arena, and in what order."
    )
    io_bind: bool = Field(False, description="Bind inputs and outputs to the device's memory in every trial.")
    providers_list: list[str | list[Any]] | None = Field(
        None, description="Execution providers of the target; the first is used. Others are other targets."
    )
    extra_session_config: Mapping[str, str] | None = Field(
        None, description="Entries of the session config that every trial has."
    )
    shape_kwargs: Mapping[str, int] = Field(
        default_factory=dict, description="Lengths of named axes for made-up input, where there are no data."
    )
    trials: int = Field(24, ge=1, description="How many sets of options are tried at most.")
    repeats: int = Field(20, ge=3, description="Calls per set, each beside one of the default session.")
    least_gain: float = Field(0.02, ge=0, lt=1, description="A set must be faster by this share to be taken.")

    @field_validator("intra_thread_num_list", "inter_thread_num_list", mode="before")
    @classmethod
    def _own_number(cls, value: Any) -> Any:
        """Older files write null for ONNX Runtime's own number of threads, which is 0 there."""
        return [0 if threads is None else threads for threads in value] if isinstance(value, list) else value

    @field_validator("providers_list", mode="before")
    @classmethod
    def _one_provider(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("execution_mode_list")
    @classmethod
    def _known_modes(cls, value: list[int | str] | None) -> list[int | str] | None:
        for mode in value or ():
            if mode not in (0, 1) and mode not in _MODES:
                raise ValueError(f"unknown execution mode {mode!r}; expected {', '.join(_MODES)}")
        return None if value is None else [_MODES[mode] if isinstance(mode, str) else mode for mode in value]


class OrtSessionParamsTuning(Pass):
    """Searches session options with Optuna. The best are noted in the model, where the runtime reads them.

    Of a folder for onnxruntime-genai its decoder is measured without a past, and genai_config.json gets the options.
    """

    Config: ClassVar[type[PassConfig]] = OrtSessionParamsTuningConfig
    version = 1

    def rehearsal(self, config: Any) -> Any:
        """Two sets, three calls each."""
        return config.model_copy(update={"trials": 2, "repeats": 3})

    def run(self, model: Model, config: OrtSessionParamsTuningConfig, context: PassContext) -> Model:
        """Measure sets of options beside the defaults, and note the best."""
        import optuna

        _note_providers(self.spec.name, config, context)
        path = graph_paths(model)[0]
        batch = self._batch(model, config, context)
        space = _space(config, context)
        if model.kind == "genai":
            # onnxruntime-genai runs its graph step by step: the other options are its own.
            space = {name: values for name, values in space.items() if name in _OF_GENAI}
        size = math.prod(len(values) for values in space.values())
        kept = dict((model.attributes.get("inference_settings") or {}).get("session_options") or {})
        default = self._open(model, path, {**kept, **_fixed(config)}, context)
        tried: list[dict[str, Any]] = []

        def objective(trial: Any) -> float:
            options = {name: trial.suggest_categorical(name, values) for name, values in space.items()}
            context.progress(len(tried), min(size, config.trials), "measuring session options")
            for earlier in tried:
                if earlier["options"] == options:
                    return float(earlier["ratio"])
            session = self._open(model, path, {**kept, **_fixed(config), **options}, context)
            ours, theirs = _interleaved(session, default, batch, config, context)
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            tried.append({"options": options, "ratio": ratio, "seconds": statistics.median(ours)})
            return ratio

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = (
            optuna.samplers.BruteForceSampler(seed=context.seed)
            if size <= config.trials
            else optuna.samplers.TPESampler(seed=context.seed)
        )
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=min(size, config.trials))
        best = min(tried, key=lambda entry: entry["ratio"])
        # The winner of many is flattered by chance: it is measured anew before it is taken.
        chosen = {**kept, **_fixed(config), **best["options"]}
        ours, theirs = _interleaved(self._open(model, path, chosen, context), default, batch, config, context)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        context.report["session_options"] = {
            "tried": sorted(tried, key=lambda entry: entry["ratio"]),
            "best_again": ratio,
            "default_seconds": statistics.median(theirs),
        }
        if ratio > 1 - config.least_gain:
            context.log.info("the default session options stay: the best set takes %.3f of their time", ratio)
            return model.derive()
        if model.kind == "genai":
            return _written(model, {name: value for name, value in chosen.items() if name in _OF_GENAI}, context)
        settings = dict(model.attributes.get("inference_settings") or {})
        settings["session_options"] = chosen
        if config.io_bind:
            settings["io_bind"] = True
        return model.derive(attributes={"inference_settings": settings})

    def _batch(
        self, model: Model, config: OrtSessionParamsTuningConfig, context: PassContext
    ) -> Mapping[str, np.ndarray]:
        import onnx

        proto = onnx.load(str(graph_paths(model)[0]), load_external_data=False)
        if config.calibrated:
            return calibration_batches(
                self.spec.name,
                proto,
                model,
                config.model_copy(update={"max_calibration_samples": 1}),
                context,
                equal=False,
            )[0]
        return made_up_batch(
            input_shapes(proto, model), seed=context.seed, batch_size=config.batch_size, lengths=config.shape_kwargs
        )

    def _open(self, model: Model, path: Path, options: Options, context: PassContext) -> Any:
        import onnxruntime as ort

        from drupe.plugins.onnx.extensions import register_extensions
        from drupe.plugins.onnx.ort_session import set_session_option

        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        register_extensions(model.attributes, settings)
        for name, value in options.items():
            set_session_option(settings, name, value)
        provider = context.accelerator.execution_provider or "CPUExecutionProvider"
        try:
            return ort.InferenceSession(
                str(path), settings, providers=[(provider, context.accelerator.provider_options)]
            )
        except Exception as error:
            raise PassError(
                f"{self.spec.name}: ONNX Runtime can't open the graph with {dict(options)}: {error}"
            ) from error


def _space(config: OrtSessionParamsTuningConfig, context: PassContext) -> dict[str, list[Any]]:
    """Return what is tried, by ONNX Runtime's names."""
    cpus = context.resources.thread_count
    powers = [1 << power for power in range(cpus.bit_length()) if 1 << power <= cpus]
    modes: Sequence[Any] = config.execution_mode_list or ([0, 1] if cpus > 1 else [0])
    space: dict[str, list[Any]] = {
        "intra_op_num_threads": sorted({*powers, cpus})
        if config.intra_thread_num_list is None
        else list(config.intra_thread_num_list),
        "execution_mode": list(modes),
        "graph_optimization_level": list(config.opt_level_list),
        "enable_cpu_mem_arena": list(config.arena_list),
    }
    if 1 in modes:
        space["inter_op_num_threads"] = config.inter_thread_num_list or sorted({1, max(1, cpus // 2)})
    return space


def _fixed(config: OrtSessionParamsTuningConfig) -> dict[str, Any]:
    return {"extra_session_config": dict(config.extra_session_config)} if config.extra_session_config else {}


def _interleaved(
    ours: Any,
    theirs: Any,
    batch: Mapping[str, np.ndarray],
    config: OrtSessionParamsTuningConfig,
    context: PassContext,
) -> tuple[list[float], list[float]]:
    """Return the seconds of calls of two sessions in turn, after three calls of each to warm up."""
    from drupe.plugins.onnx.ort_session import run_session

    def call(session: Any) -> float:
        started = time.perf_counter()
        if config.io_bind:
            run_session(session, batch, bound=True)
        else:
            session.run(None, dict(batch))
        return time.perf_counter() - started

    for _ in range(3):
        call(ours)
        call(theirs)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(config.repeats):
        context.raise_if_cancelled()
        # Which of the two goes first changes, since the second finds warmer caches.
        for index in (0, 1) if number % 2 else (1, 0):
            seconds[index].append(call((ours, theirs)[index]))
    return seconds


def _note_providers(name: str, config: OrtSessionParamsTuningConfig, context: PassContext) -> None:
    """Tell in the log which of the config's providers are not tried."""
    listed = [entry if isinstance(entry, str) else str(entry[0]) for entry in config.providers_list or ()]
    provider = context.accelerator.execution_provider or "CPUExecutionProvider"
    others = [entry for entry in listed if entry != provider]
    if others:
        context.log.warning(
            "%s: %s of providers_list are not tried; the target's provider is %s", name, ", ".join(others), provider
        )


def _written(model: Model, options: Options, context: PassContext) -> Model:
    """Return the model with options in the genai_config.json of its decoder."""
    path = model.folder / "genai_config.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["decoder"].setdefault("session_options", {}).update(options)
    text = json.dumps(data, indent=4, ensure_ascii=False)
    (context.output_dir / path.name).write_text(text + "\n", encoding="utf-8")
    return model.derive(add_dir=context.output_dir)

"""OnnxDiscrepancyCheck: a graph beside the model that it was made of, on the same inputs; it goes on unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from drupe.core.config import FileRef, PassConfig, tell_unused
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model
from drupe.core.passes import Pass
from drupe.core.runtimes import Session
from drupe.plugins.metrics.differences import Differences, differences, unpadded
from drupe.plugins.onnx.calibration import PAST, DataSourceConfig, input_batches, input_shapes
from drupe.plugins.onnx.generation_check import GenerationOptions, compare_generation
from drupe.plugins.onnx.graphs import graph_paths
from drupe.plugins.onnx.made_up import made_up_batch, table_sizes
from drupe.plugins.onnx.reference_model import open_model, reference_model

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxDiscrepancyCheck", "OnnxDiscrepancyCheckConfig"]

Batch = Mapping[str, "np.ndarray"]


class OnnxDiscrepancyCheckConfig(DataSourceConfig, GenerationOptions):
    """What is compared, on what, and how far apart the two may be. Each limit holds for each output."""

    reference_model_path: FileRef = Field(
        description="The model to compare with: a Hugging Face folder, a GGUF file, an .onnx file, or a folder "
        "with one and the weights beside it."
    )
    outputs: list[str] | dict[str, str] | None = Field(
        None,
        min_length=1,
        description="Outputs to compare, or the graph's name → the reference's; default: those by one name in both.",
    )
    max_mae: float | None = Field(None, ge=0, description="Largest absolute error that is allowed.")
    max_mean_error: float | None = Field(None, ge=0, description="Largest mean of the absolute errors.")
    min_cosine: float | None = Field(None, ge=-1, le=1, description="Least cosine of an output with the reference's.")
    max_flips: float | None = Field(
        None, ge=0, le=1, description="Largest share of positions at which the largest number is another one."
    )
    max_elements_above_0_1: int | None = Field(None, ge=0, description="How many errors may exceed 0.1.")
    max_elements_above_0_01: int | None = Field(None, ge=0, description="How many errors may exceed 0.01.")
    on_failure: Literal["fail", "record"] = Field(
        "fail", description="Beyond a limit the run stops, or it is told in the log and the report alone."
    )
    made_up_num: int = Field(4, ge=1, description="How many made-up inputs serve where no data are given.")
    shape_kwargs: Mapping[str, int] = Field(
        default_factory=dict, description="Lengths of named axes for made-up inputs."
    )

    @model_validator(mode="after")
    def _without_effect(self, info: ValidationInfo) -> OnnxDiscrepancyCheckConfig:
        """Tell of what is given for inputs, texts or times that there are none of."""
        if self.calibrated:
            tell_unused(info, self, ("made_up_num", "shape_kwargs"), "the inputs come from the data that are given")
        if not self.generates:
            texts = ("generate_prompt", "generate_max_new_tokens", "time_to_first_n_tokens")
            tell_unused(info, self, texts, "texts are compared where min_longest_common_tokens is given")
        if not self.timing_iterations:
            tell_unused(info, self, ("warmup_iterations",), "calls are timed where timing_iterations is given")
        return self


class OnnxDiscrepancyCheck(Pass):
    """Runs a graph and a reference on the same inputs and compares what they give.

    Rules: 1. The model goes on as it came. 2. Padding does not count. 3. What is no number where the reference has one
    is beyond every limit. The metric `discrepancy` measures the same as a goal of the workflow; this pass stops a chain
    in the middle.
    """

    Config: ClassVar[type[PassConfig]] = OnnxDiscrepancyCheckConfig
    version = 1

    def rehearsal(self, config: Any) -> Any:
        """Two inputs, two tokens; a rehearsed model is another one, so what is found is only recorded."""
        return config.model_copy(
            update={
                "max_calibration_samples": 2,
                "made_up_num": 2,
                "generate_max_new_tokens": 2,
                "timing_iterations": min(config.timing_iterations, 1),
                "on_failure": "record",
            }
        )

    def run(self, model: Model, config: OnnxDiscrepancyCheckConfig, context: PassContext) -> Model:
        """Compare, tell, and judge."""
        reference = reference_model(self.spec.name, str(config.reference_model_path), context)
        graph = self._graph(model)
        with (
            open_model(graph, context.accelerator, context) as ours,
            open_model(reference, None, context) as theirs,
        ):
            batches = self._batches(graph, model, ours, config, context)
            found, worst = self._compare(ours, theirs, batches, config, context)
            report: dict[str, Any] = {"outputs": {name: _told(item) for name, item in found.items()}}
            report["inputs"] = len(batches)
            failures = [text for name, item in found.items() for text in _beyond(name, item, worst[name], config)]
            if config.generates:
                report["generation"], more = compare_generation(self.spec.name, model, theirs, config, context)
                failures += more
            if config.timing_iterations:
                report["seconds"] = _seconds(ours, theirs, batches[0], config)
        context.report["discrepancy"] = {**report, "failures": failures}
        if failures:
            text = f"{self.spec.name}: the graph is too far from {config.reference_model_path}: {'; '.join(failures)}"
            if config.on_failure == "fail":
                raise PassError(f"{text}. Raise the limit, or set on_failure: record to go on")
            context.log.warning("%s", text)
        return model.derive()

    def _graph(self, model: Model) -> Model:
        """Return what is opened: of a folder for onnxruntime-genai its graph, since only graphs give all they make."""
        if model.kind != "genai":
            return model
        paths = graph_paths(model)
        if len(paths) != 1:
            raise ConfigError(f"{self.spec.name} is for folders of one graph; this one has {len(paths)}")
        return Model("onnx", model.files, {"onnx_file": paths[0].relative_to(model.folder).as_posix()}, model.folder)

    def _batches(
        self, graph: Model, model: Model, session: Session, config: OnnxDiscrepancyCheckConfig, context: PassContext
    ) -> list[Batch]:
        import numpy as np
        import onnx

        if model.kind == "composite":
            inputs = {name: (shape, np.dtype(kind)) for name, (shape, kind) in session.input_shapes().items()}
        else:
            inputs = input_shapes(onnx.load(str(graph_paths(graph)[0]), load_external_data=False), model)
        if config.calibrated:
            return input_batches(self.spec.name, inputs, model, config, context, equal=False)
        below: dict[str, int] = {}
        for path in graph_paths(graph):
            below = table_sizes(onnx.load(str(path), load_external_data=False)) | below
        return [
            made_up_batch(
                inputs,
                seed=context.seed + number,
                batch_size=config.batch_size,
                lengths=config.shape_kwargs,
                below=below,
            )
            for number in range(config.made_up_num)
        ]

    def _compare(
        self,
        ours: Session,
        theirs: Session,
        batches: Sequence[Batch],
        config: OnnxDiscrepancyCheckConfig,
        context: PassContext,
    ) -> tuple[dict[str, Differences], dict[str, int]]:
        """Return output → differences over all inputs, and output → which input has the largest one."""
        import numpy as np

        totals: dict[str, Differences] = {}
        worst: dict[str, int] = {}
        for number, batch in enumerate(batches):
            context.progress(number, len(batches), "comparing with the reference")
            given = ours.forward(batch).outputs
            expected = theirs.forward(_for_reference(theirs, batch)).outputs
            mask = batch.get("attention_mask")
            for name, other in self._pairs(given, expected, config).items():
                a, b = np.asarray(given[name]), np.asarray(expected[other])
                if a.shape != b.shape:
                    raise PassError(
                        f"{self.spec.name}: output {name!r} has the shape {list(a.shape)} for input {number}; the "
                        f"reference's {other!r} has {list(b.shape)}"
                    )
                a, b = np.atleast_1d(a), np.atleast_1d(b)
                for row in range(len(a)):
                    item = differences(unpadded(a, row, mask), unpadded(b, row, mask))
                    if name not in totals or item.largest > totals[name].largest:
                        worst[name] = number
                    totals[name] = totals.get(name, Differences()) + item
        return totals, worst

    def _pairs(
        self, given: Mapping[str, Any], expected: Mapping[str, Any], config: OnnxDiscrepancyCheckConfig
    ) -> dict[str, str]:
        """Return which output of the graph is compared with which of the reference."""
        chosen = config.outputs
        if chosen is None:
            pairs = {name: name for name in given if name in expected}
        else:
            pairs = dict(chosen) if isinstance(chosen, Mapping) else {name: name for name in chosen}
        absent = [name for name in pairs if name not in given] + [n for n in pairs.values() if n not in expected]
        if absent or not pairs:
            raise ConfigError(
                f"{self.spec.name}: {', '.join(absent) or 'no output'} is in both; the graph gives {', '.join(given)}, "
                f"the reference {', '.join(expected)}; name them as outputs: {{graph's: reference's}}"
            )
        return pairs


def _for_reference(session: Session, batch: Batch) -> Batch:
    """Return what the reference takes of a batch; without earlier tokens there are no keys and values to give it."""
    import numpy as np

    try:
        wanted = session.input_shapes()
    except NotImplementedError:
        wanted = {}
    if not wanted:
        return {name: value for name, value in batch.items() if not name.startswith(PAST)}
    absent = {name: value for name, value in wanted.items() if name not in batch and name.startswith(PAST)}
    none = made_up_batch({name: (shape, np.dtype(kind)) for name, (shape, kind) in absent.items()}, seed=0)
    return {**{name: batch[name] for name in wanted if name in batch}, **none}


def _told(item: Differences) -> dict[str, float]:
    return {
        "max_error": item.largest,
        "mean_error": item.mean,
        "cosine": item.cosine,
        "flips": item.flip_share,
        "elements": item.count,
        "elements_above_0_1": item.tenths,
        "elements_above_0_01": item.hundredths,
    }


def _beyond(name: str, item: Differences, worst: int, config: OnnxDiscrepancyCheckConfig) -> list[str]:
    """Return what is beyond a limit. Comparisons are so that what is no number is beyond it too."""
    upper: list[tuple[str, float, float | None]] = [
        ("max_mae", item.largest, config.max_mae),
        ("max_mean_error", item.mean, config.max_mean_error),
        ("max_flips", item.flip_share, config.max_flips),
        ("max_elements_above_0_1", item.tenths, config.max_elements_above_0_1),
        ("max_elements_above_0_01", item.hundredths, config.max_elements_above_0_01),
    ]
    where = f"output {name}, worst for input {worst}"
    told = [
        f"{limit}: {value:.6g}, allowed is {allowed:.6g} ({where})"
        for limit, value, allowed in upper
        if allowed is not None and not value <= allowed
    ]
    if config.min_cosine is not None and not item.cosine >= config.min_cosine:
        told.append(f"min_cosine: {item.cosine:.6g}, at least {config.min_cosine:.6g} is asked ({where})")
    return told


def _seconds(ours: Session, theirs: Session, batch: Batch, config: OnnxDiscrepancyCheckConfig) -> dict[str, float]:
    """Return the median seconds of a call of each, taken in turn. Others may use the machine meanwhile."""
    import statistics
    import time

    calls = {"graph": (ours, batch), "reference": (theirs, _for_reference(theirs, batch))}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(config.warmup_iterations + config.timing_iterations):
        for name, (session, inputs) in calls.items():
            started = time.perf_counter()
            session.forward(inputs)
            if number >= config.warmup_iterations:
                taken[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {**medians, "speedup": medians["reference"] / medians["graph"]}

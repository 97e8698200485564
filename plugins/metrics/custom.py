"""The user's own metric: a function of a script, run after the user's consent."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from pydantic import Field, model_validator

from drupe.core.context import JobContext
from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from drupe.core.metrics import Metric, Rows, SubType
from drupe.core.model import Model
from drupe.core.runtimes import Session
from drupe.core.user_scripts import blamed, call_with_known, script_function
from drupe.plugins.metrics.batches import array, batches, data_dir_of, spread
from drupe.plugins.metrics.config import FORWARD_ONLY, DataMetricConfig
from drupe.plugins.metrics.every_name import EveryName
from drupe.plugins.metrics.outputs import post_processed, tensors

__all__ = ["Custom", "CustomConfig", "ScriptModel"]


class CustomConfig(DataMetricConfig):
    """Which function measures."""

    evaluate_func: str | None = Field(
        None,
        description="Function of user_script (model, …) that measures by itself; it is offered data_dir, batch_size, "
        "device, execution_providers, model_framework, session and samples by name.",
    )
    metric_func: str | None = Field(
        None, description="Function of user_script (predictions, targets) that judges what the model gave."
    )
    higher_is_better: bool | dict[str, bool] = Field(True, description="The direction, for all or by sub-type.")

    def without_effect(self) -> Mapping[str, str]:
        """See DataMetricConfig. batch_size is offered to evaluate_func."""
        if self.evaluate_func is None:
            return {}
        names = [name for name in FORWARD_ONLY if name != "batch_size"]
        return dict.fromkeys(names, "evaluate_func measures by itself")

    @model_validator(mode="after")
    def _one_function(self) -> CustomConfig:
        if (self.evaluate_func is None) == (self.metric_func is None):
            raise ValueError("a custom metric needs either evaluate_func or metric_func, and a user_script with it")
        return self


class Custom(Metric):
    """The function returns a number, numbers by sub-type, or, to make intervals possible, one number per sample.

    Rows: (code, value, code, value, …), one pair for each sub-type; a code is the CRC-32 of the sub-type's name, so
    that rows tell by themselves which value is whose. A number without a name serves every sub-type. The value of a
    sub-type is its mean over the rows.
    """

    Config = CustomConfig
    version = 1
    sub_types = EveryName(lambda name: SubType("", "higher"))

    def needs(self, config: CustomConfig) -> Sequence[str]:
        """See Metric.needs: an evaluate_func may use the model in any way."""
        return ("forward", "generate", "score") if config.evaluate_func else ("forward",)

    def needs_data(self, config: CustomConfig) -> bool:
        """See Metric.needs_data: of a metric_func, where no loader of the user's gives any."""
        return config.metric_func is not None and config.dataloader_func is None

    def sub_type(self, name: str, config: CustomConfig) -> SubType:
        """See Metric.sub_type."""
        told = config.higher_is_better
        higher = told.get(name, True) if isinstance(told, Mapping) else told
        return SubType("", "higher" if higher else "lower")

    def measure(
        self,
        model: Model,
        session: Session | None,
        samples: Sequence[Sample],
        config: CustomConfig,
        context: JobContext,
    ) -> Rows:
        """See Metric.measure."""
        import numpy as np

        assert session is not None
        evaluate = script_function(config, "evaluate_func", context)
        if evaluate is not None:
            return _rows(self._evaluated(evaluate, model, session, samples, config, context), str(config.evaluate_func))
        judge = script_function(config, "metric_func", context)
        assert judge is not None
        predictions, targets, ids = [], [], []
        for batch in batches(session, samples, config, context):
            scores = post_processed(session.forward(batch.inputs).outputs, config, context, count=len(batch.ids))
            for key, position, target in spread(batch, len(scores)):
                predictions.append(scores[position])
                targets.append(target)
                ids.append(key)
        given = tensors({"predictions": np.asarray(predictions), "targets": np.asarray(targets)})
        with blamed(config.metric_func, config.user_script):
            value = judge(given["predictions"], given["targets"], **config.func_kwargs.get("metric_func", {}))
        return _rows(value, str(config.metric_func), ids)

    def aggregate(self, rows: Sequence[tuple[float, ...]], sub_type: str, config: CustomConfig) -> float:
        """See Metric.aggregate. Raises EvaluationError for a sub-type that the function did not give."""
        import numpy as np

        table = np.asarray(rows, dtype=float)
        codes = table[0, 0::2]
        for column, code in enumerate(codes):
            if code in (0.0, _code(sub_type)):
                return float(table[:, 2 * column + 1].mean())
        raise EvaluationError(f"the user's function gave no value named {sub_type!r}")

    def _evaluated(
        self,
        evaluate: Callable[..., Any],
        model: Model,
        session: Session,
        samples: Sequence[Sample],
        config: CustomConfig,
        context: JobContext,
    ) -> Any:
        provider = context.accelerator.execution_provider
        offered = {
            "data_dir": data_dir_of(config, context),
            "batch_size": config.batch_size,
            "model_framework": session.framework,
            "device": context.accelerator.device,
            "execution_providers": [provider] if provider else None,
            "session": session,
            "samples": samples,
        }
        bound = functools.partial(evaluate, ScriptModel(model, session))
        with blamed(config.evaluate_func, config.user_script):
            return call_with_known(bound, offered, config.func_kwargs.get("evaluate_func", {}))


class ScriptModel:
    """What a script's evaluate_func gets as its model: the calls that scripts written for Olive make."""

    def __init__(self, model: Model, session: Session) -> None:
        self.model_path = str(model.folder)
        self.framework = session.framework or model.kind
        self._session = session
        self._bare = model.kind == "pytorch"

    def prepare_session(self, *args: Any, **kwargs: Any) -> ScriptModel:
        """Return what can be run; where and how it runs was decided when the session was opened."""
        return self

    def load_model(self, *args: Any, **kwargs: Any) -> ScriptModel:
        """Return what can be called."""
        return self

    def eval(self) -> ScriptModel:
        """Return the model: it is in evaluation mode already."""
        return self

    def get_inputs(self) -> list[SimpleNamespace]:
        """Return name, shape and type of the inputs, as a session of ONNX Runtime does."""
        told = self._session.input_shapes()
        return [SimpleNamespace(name=n, shape=list(shape), type=dtype) for n, (shape, dtype) in told.items()]

    def get_outputs(self) -> list[SimpleNamespace]:
        """Return the names of the outputs, as a session of ONNX Runtime does."""
        names = getattr(self._session, "output_names", None)
        if names is None:
            raise EvaluationError("the outputs of this model are known by calling it; get_outputs is for ONNX models")
        return [SimpleNamespace(name=name) for name in names]

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], *_: Any) -> list[Any]:
        """Return outputs as arrays in order, as a session of ONNX Runtime does."""
        found = self._session.forward({name: array(value) for name, value in input_feed.items()}).outputs
        return [array(found[name]) for name in output_names or found]

    def run_session(self, session: Any, inputs: Any, **kwargs: Any) -> Any:
        """Return the outputs of one batch: a mapping of arrays or tensors, or one of them for a model of one input.

        A PyTorchModel of one output gives that, as its module does.
        """
        if not isinstance(inputs, Mapping):
            inputs = {next(iter(self._session.input_shapes())): inputs}
        arrays = {name: array(value) for name, value in inputs.items()}
        found = tensors(self._session.forward(arrays).outputs)
        return next(iter(found.values())) if self._bare and len(found) == 1 else found

    def __call__(self, inputs: Any = None, **named: Any) -> Any:
        """Run one batch."""
        return self.run_session(None, named if inputs is None else inputs)


def _rows(value: Any, function: str, ids: Sequence[str] = ()) -> Rows:
    import numpy as np

    by_name = value if isinstance(value, Mapping) else {"": value}
    try:
        if any(given is None for given in by_name.values()):
            raise TypeError("None is no number")
        columns = {str(name): np.asarray(array(v), dtype=float) for name, v in by_name.items()}
    except (TypeError, ValueError):
        columns = {}
    sizes = {column.shape for column in columns.values()}
    if not columns or len(sizes) != 1 or any(len(size) > 1 for size in sizes):
        raise EvaluationError(
            f"{function} must return a number, a mapping of numbers, or one number per sample, not {value!r}"
        )
    odd = next((name for name, column in columns.items() if not np.isfinite(column).all()), None)
    if odd is not None:
        raise EvaluationError(f"{function} returned {value!r:.80}; expected finite numbers{odd and f' as {odd}'}")
    (shape,) = sizes
    count = shape[0] if shape else 1
    names = ids if shape and len(ids) == count else [f"sample-{i:05}" for i in range(count)] if shape else ["model"]
    flat = {name: column.reshape(-1) for name, column in columns.items()}
    return {key: tuple(x for name in flat for x in (_code(name), float(flat[name][i]))) for i, key in enumerate(names)}


def _code(name: str) -> float:
    return float(zlib.crc32(name.encode())) if name else 0.0

"""What all built-in metrics accept: Olive's `user_config`, flat or nested, with a defined meaning for each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from drupe.core.config import FileRef, tell_unused
from drupe.core.context import JobContext
from drupe.core.metrics import MetricConfig

__all__ = ["FORWARD_ONLY", "DataMetricConfig", "flattened", "note"]

FORWARD_ONLY = (
    "batch_size", "dataloader_func", "post_processing_func", "input_names", "input_shapes", "input_types",
    "shape_kwargs",
)  # fmt: skip
"""Fields that matter to forward calls only."""
_FUNCTIONS = ("dataloader_func", "post_processing_func", "evaluate_func", "metric_func")
_MADE_UP = ("input_names", "input_shapes", "input_types", "shape_kwargs")


def flattened(values: Any) -> Any:
    """Return a metric's config with `user_config` merged in; what stands beside it wins."""
    if not isinstance(values, Mapping) or not isinstance(values.get("user_config"), Mapping):
        return values
    rest = {key: value for key, value in values.items() if key != "user_config"}
    return {**values["user_config"], **rest}


class DataMetricConfig(MetricConfig):
    """Base of metrics that feed a model: with the samples of a data config, a user's data loader, or made-up input."""

    batch_size: int = Field(1, ge=1, description="Samples per forward call.")
    backend: Literal["torch_metrics", "huggingface_metrics"] | None = Field(
        None, description="Whose names the sub-types go by; both are known, and computed here without the library."
    )
    user_script: FileRef | None = Field(None, description="A Python file of the user's; needs --allow user-scripts.")
    script_dir: FileRef | None = Field(None, description="A folder that the script imports from.")
    data_dir: FileRef | None = Field(None, description="A folder given to the script's functions as data_dir.")
    dataloader_func: str | None = Field(
        None, description="Function of user_script that returns an iterable of (inputs, targets) batches."
    )
    post_processing_func: str | None = Field(
        None, description="Function of user_script that turns the model's outputs into predictions."
    )
    func_kwargs: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Further arguments: function field (dataloader_func, …) → keyword arguments."
    )
    shape_kwargs: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, description="Sizes of named axes for made-up input where there is no data."
    )
    input_shapes: list[list[int]] | None = Field(
        None, description="Shapes of made-up input where there is no data, the batch first; default: the model's own."
    )
    input_names: list[str] | None = Field(
        None, description="Whose shapes input_shapes are; default: the model's inputs in their order."
    )
    input_types: list[str] | None = Field(
        None, description="A numpy type per shape; a type that the model tells wins. Default: float32."
    )

    def without_effect(self) -> Mapping[str, str]:
        """Return the fields that change nothing beside the values of others, each with the reason."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, values: Any) -> Any:
        return cls._with_run_kwargs(flattened(values))

    @classmethod
    def _with_run_kwargs(cls, values: Any) -> Any:
        """Take what Olive hands to the call of a model: whether it generates, and how much."""
        if not isinstance(values, Mapping) or not isinstance(values.get("run_kwargs"), Mapping):
            return values
        way = next((name for name in ("mode", "method") if name in cls.model_fields), None)
        if way is None or "max_new_tokens" not in cls.model_fields:
            raise ValueError("run_kwargs: nothing is generated for this metric; leave run_kwargs out")
        rest = {key: value for key, value in values.items() if key != "run_kwargs"}
        for key, value in values["run_kwargs"].items():
            name, meant = key, value
            if key == "generative" and isinstance(value, bool):
                forward = "classify" if "classify" in get_args(cls.model_fields[way].annotation) else "forward"
                name, meant = way, "generate" if value else forward
            elif key != "max_new_tokens":
                expected = "true or false" if key == "generative" else "generative or max_new_tokens"
                found = repr(value) if key == "generative" else repr(key)
                raise ValueError(f"run_kwargs: {found} is not supported; use {expected}")
            if rest.setdefault(name, meant) != meant:
                raise ValueError(f"run_kwargs: {key} is {value!r}, and {name} is {rest[name]!r}; leave one of them out")
        return rest

    @field_validator("input_types")
    @classmethod
    def _known_types(cls, values: list[str] | None) -> list[str] | None:
        import numpy as np

        for kind in values or ():
            try:
                numbers = np.dtype(kind).kind in "biufc"
            except TypeError:
                numbers = False
            if not numbers:
                raise ValueError(f"{kind!r} is no numpy type of numbers; use float32, int64, …")
        return values

    @field_validator("input_names")
    @classmethod
    def _each_once(cls, values: list[str] | None) -> list[str] | None:
        if values is not None and len(set(values)) != len(values):
            raise ValueError(f"{values}: expected each once")
        return values

    @field_validator("input_shapes")
    @classmethod
    def _whole_shapes(cls, values: list[list[int]] | None) -> list[list[int]] | None:
        for shape in values or ():
            if any(size < 1 for size in shape):
                raise ValueError(f"{shape} is no shape; say sizes of at least 1")
        return values

    @field_validator("func_kwargs")
    @classmethod
    def _known_functions(cls, values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        known = [name for name in _FUNCTIONS if name in cls.model_fields]
        for name in values:
            if name not in known:
                raise ValueError(f"{name!r} is no function of this metric; known: {', '.join(known)}")
        return values

    @model_validator(mode="after")
    def _one_shape_each(self) -> DataMetricConfig:
        for name in ("input_names", "input_types"):
            values = getattr(self, name)
            if values is not None and self.input_shapes is not None and len(values) != len(self.input_shapes):
                raise ValueError(f"{name} has {len(values)} entries; input_shapes has {len(self.input_shapes)}")
        return self

    @model_validator(mode="after")
    def _tell_unused(self, info: ValidationInfo) -> DataMetricConfig:
        reasons = dict(self.without_effect())
        functions = [name for name in _FUNCTIONS if getattr(self, name, None) is not None and name not in reasons]
        if not functions:
            for name in ("user_script", "script_dir", "data_dir", "func_kwargs"):
                reasons.setdefault(name, "no function of user_script is called")
        if self.dataloader_func is not None:
            for name in _MADE_UP:
                reasons.setdefault(name, "dataloader_func gives the inputs")
        if self.input_shapes is None:
            for name in ("input_names", "input_types"):
                reasons.setdefault(name, "the model says its inputs, and there are no input_shapes")
        idle = [name for name in self.func_kwargs if name not in functions]
        if idle:
            reasons.setdefault("func_kwargs", f"{', '.join(idle)} is not called")
        for name, reason in reasons.items():
            tell_unused(info, self, [name], reason)
        return self

    @model_validator(mode="after")
    def _functions_have_a_script(self) -> DataMetricConfig:
        for name in _FUNCTIONS:
            if getattr(self, name, None) is not None and self.user_script is None:
                raise ValueError(f"{name} names a function of user_script, which is not given; add user_script")
        return self


def note(text: str, context: JobContext) -> None:
    """Tell something once, in the log and the report."""
    told: list[str] = context.report.setdefault("notes", [])
    if text not in told:
        told.append(text)
        context.log.warning("%s", text)

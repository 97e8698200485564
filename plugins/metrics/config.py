"""What all built-in metrics accept: Olive's `user_config`, flat or nested, with a defined meaning for each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from drupe.core.config import FileRef
from drupe.core.context import JobContext
from drupe.core.metrics import MetricConfig

__all__ = ["DataMetricConfig", "flattened", "note"]


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

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, values: Any) -> Any:
        return flattened(values)

    @model_validator(mode="after")
    def _functions_have_a_script(self) -> DataMetricConfig:
        for name in ("dataloader_func", "post_processing_func", "evaluate_func", "metric_func"):
            if getattr(self, name, None) is not None and self.user_script is None:
                raise ValueError(f"{name} names a function of user_script, which is not given; add user_script")
        return self


def note(text: str, context: JobContext) -> None:
    """Tell something once, in the log and the report."""
    told: list[str] = context.report.setdefault("notes", [])
    if text not in told:
        told.append(text)
        context.log.warning("%s", text)

"""The base class of data containers, and samples.

A container is light to construct; `identity` is light as well, so that step keys can be computed without the data's
libraries. `load` runs in the worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from drupe.core.config import PluginConfig
from drupe.core.context import JobContext
from drupe.core.errors import Fault
from drupe.core.model import Model

if TYPE_CHECKING:
    import numpy as np

    from drupe.core.specs import DataSpec

__all__ = ["DataConfig", "DataContainer", "Sample"]


@dataclass(frozen=True)
class Sample:
    """One item of data.

    id: stable, unique in its container. inputs: what a model is fed, arrays or strings; of text generation: "prompt"
    and "text" (str), "input_ids", "attention_mask" and "labels" (int64 arrays of one dimension, labels -100 where no
    loss is taken). target: the expected answer, label or array. content_key: the digest of the normalised content; the
    same content has the same key wherever it stands. extras: what only some samples have; "reference" (what a source
    model gives, by output name), "whole_batch" (true where the arrays are a batch as the model takes it, their batch
    axes included, and must not be stacked with others).
    """

    id: str
    inputs: Mapping[str, np.ndarray | str]
    target: Any = None
    content_key: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)


class DataConfig(PluginConfig):
    """Base of data configs: what every entry of `data_configs` may say besides the container's own fields."""


class DataContainer:
    """A source of samples."""

    Config: ClassVar[type[DataConfig]] = DataConfig
    version: ClassVar[int] = 1

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec

    def check(self, config: Any, workflow_dir: Path) -> Sequence[Fault]:
        """Return what can be known to be wrong before loading: absent files (kind "needs"), missing columns. Light."""
        return ()

    def identity(self, config: Any, workflow_dir: Path) -> Any:
        """Return JSON data that changes whenever the samples would: file digests, a hub revision. Light."""
        raise NotImplementedError

    def files(self, config: Any, workflow_dir: Path) -> Sequence[Path]:
        """Return the files and folders of this machine that `load` reads, so that other machines can be sent them.

        The default is what the FileRef fields refer to. Light.
        """
        from drupe.core.job_files import referred_files

        return referred_files(config, workflow_dir)

    def count(self, config: Any, workflow_dir: Path) -> int | None:
        """Return about how many samples there are, or None where that takes loading them. Light."""
        return None

    def prompting(self, config: Any) -> Mapping[str, Any]:
        """Say how a user's text becomes a prompt: {"prompt_template": str with one {field}, "stop": [str]}, or {}."""
        return {}

    def load(self, config: Any, model: Model | None, context: JobContext) -> Iterable[Sample]:
        """Yield the samples, prepared with `model`'s tokenizer or processor where the task needs one.

        Accounting (rows, tokens, blocks, dropped and why) goes to `context.report["data"][name]` through the caller;
        put it into `context.report.setdefault("accounting", {})`. Raises ConfigError for a missing column or zero rows.
        """
        raise NotImplementedError

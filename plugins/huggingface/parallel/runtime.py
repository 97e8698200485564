"""The runtime `distributed_hf`: Hugging Face models that are split over ranks, all ranks on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Result, Session
from drupe.core.scoring import Sequences
from drupe.plugins.huggingface.loading import torch_dtype
from drupe.plugins.huggingface.parallel.layout import Layout
from drupe.plugins.huggingface.parallel.ranks import Ranks
from drupe.plugins.huggingface.runtime import TransformersRuntime

__all__ = ["DistributedHfRuntime", "RanksSession"]


class DistributedHfRuntime(TransformersRuntime):
    """Starts a process for each rank: on a CPU they share its threads and exchange by gloo, on GPUs each has one and
    they exchange by NCCL. Options: those of the runtime hf.

    Times are the first rank's, so that who asks is not in them; memory (`peak_memory`) is that of all processes.
    """

    version = 1

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> Session:
        """See Runtime.open."""
        import torch

        try:
            layout = Layout.read(model.folder)
        except ConfigError as error:
            raise EvaluationError(str(error)) from error
        torch_dtype(options.get("dtype"))
        device = "cpu"
        if accelerator.device == "gpu":
            device = "cuda"
            found = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if found < layout.world_size:
                raise EvaluationError(
                    f"the model is split over {layout.world_size} GPUs, and PyTorch sees {found} here; split it by a "
                    "world_size of so many, or measure it on a cpu"
                )
        told = {key: value for key, value in model.attributes.get("load_kwargs", {}).items() if key in _OF_LOADING}
        ranks = Ranks(layout.world_size, device=device, threads=options.get("threads"))
        try:
            held = ranks.ask("open", model.to_json(), str(model.folder.absolute()), {**told, **_given(options)})
        except EvaluationError as error:
            ranks.close()
            raise EvaluationError(f"the model can't be loaded: {error}") from error
        session = RanksSession(ranks, held)
        session.capabilities = self.capabilities(model)
        return session


_OF_LOADING = ("dtype", "attn_implementation")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


class RanksSession(Session):
    """A model on its ranks. bytes_by_rank: what each rank's weights take."""

    framework = "PyTorch"
    takes_more = True

    def __init__(self, ranks: Ranks, bytes_by_rank: Sequence[int]) -> None:
        self._ranks = ranks
        self.bytes_by_rank = tuple(bytes_by_rank)

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """See Session.forward."""
        result, seconds = self._ranks.call("forward", dict(batch))
        return Result(result.outputs, device_seconds=seconds)

    def generate(self, prompt: str | np.ndarray, options: GenerateOptions) -> Result:
        """See Session.generate."""
        result, seconds = self._ranks.call("generate", prompt, options)
        return Result(result.outputs, device_seconds=seconds)

    def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
        """See Session.score."""
        return self.score_batch([(np.asarray(input_ids), labels)])[0]

    def score_batch(self, sequences: Sequences) -> Sequence[Result]:
        """See Session.score_batch."""
        found: Sequence[Result] = self._ranks.call("score_batch", list(sequences))[0]
        return found

    def tokenize(self, text: str, *, special_tokens: bool = True) -> np.ndarray:
        """See Session.tokenize."""
        ids: np.ndarray = self._ranks.call("tokenize", text, alone=True, special_tokens=special_tokens)[0]
        return ids

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        """See Session.input_shapes."""
        shapes: Mapping[str, tuple[tuple[int | str, ...], str]] = self._ranks.call("input_shapes", alone=True)[0]
        return shapes

    def close(self) -> None:
        """See Session.close."""
        self._ranks.close()

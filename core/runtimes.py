"""The base classes of runtimes and sessions.

A runtime turns a model kind into something that runs on an accelerator. Metrics talk to sessions only. Batches are
mappings of numpy arrays or strings, never a framework's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from drupe.core.accelerators import Accelerator
from drupe.core.model import Model, ModelInfo

if TYPE_CHECKING:
    import numpy as np

    from drupe.core.specs import RuntimeSpec

__all__ = ["GenerateOptions", "Result", "Runtime", "Session"]


@dataclass(frozen=True)
class GenerateOptions:
    """How to generate: greedy unless temperature > 0; stop: strings at which the text is cut, empty ones aside."""

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def cut(self, text: str) -> str:
        """Return a text up to where the first of the stops begins; all of it where there is none."""
        places = [place for place in (text.find(stop) for stop in self.stop if stop) if place >= 0]
        return text[: min(places, default=len(text))]


@dataclass(frozen=True)
class Result:
    """What a call gave. device_seconds: time on the device where it knows better than the caller; counters: energy (J),
    cycles, …"""

    outputs: Mapping[str, Any]
    device_seconds: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)


class Session:
    """A model that is loaded and can be called. Sessions are context managers; `close` frees the device.

    capabilities: what this session can do, as `Runtime.capabilities` told for its model; set by who opens it.
    framework: the name that functions of users' scripts are given as model_framework ("ONNX", "PyTorch"), if any.
    takes_more: whether `forward` takes inputs beyond those of `input_shapes`, and says itself what it does not take.
    """

    capabilities: Sequence[str] = ()
    framework: str | None = None
    takes_more: bool = False

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """Run the model on a batch: arrays of shape (batch, …) by input name → arrays by output name."""
        raise NotImplementedError

    def generate(self, prompt: str | np.ndarray, options: GenerateOptions) -> Result:
        """Generate from one prompt, text or token ids of shape (n,).

        outputs: "text" (str, without the prompt), "token_ids" (int64, (m,)), "token_seconds" (float64, (m,): seconds
        from the call to each token, the first one being the time to first token).
        """
        raise NotImplementedError

    def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
        """Score one sequence. input_ids, labels: int64 (n,); labels -100 where nothing is scored.

        outputs: "logprobs" (float64, (n,)): the natural log-probability of labels[i] given input_ids[:i], NaN where
        nothing is scored (position 0 always). "greedy" (bool, (n,)): whether labels[i] is the likeliest token there;
        False where nothing is scored. Metrics that count exact continuations need it; others do without.
        """
        raise NotImplementedError

    def score_batch(self, sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> Sequence[Result]:
        """Score several sequences, (input_ids, labels) each, of any lengths: what `score` gives for each, in order.

        Up to rounding the values do not depend on what stands beside them. The default takes one sequence after the
        other; sessions that gain by a batch refine it.
        """
        return [self.score(ids, labels) for ids, labels in sequences]

    def tokenize(self, text: str, *, special_tokens: bool = True) -> np.ndarray:
        """Return the token ids (int64, (n,)) of a text by the model's own tokenizer."""
        raise NotImplementedError

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        """Return name → (shape, numpy dtype name) of what `forward` takes; named axes are strings."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the session holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Runtime:
    """Opens models."""

    version: int = 1

    def __init__(self, spec: RuntimeSpec) -> None:
        self.spec = spec

    def options(self, accelerator: Accelerator, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check and complete options; part of measurement keys. Raises ConfigError for an unknown one."""
        return dict(options)

    def capabilities(self, model: Model) -> Sequence[str]:
        """What a session of this very model can do; a subset of the spec's capabilities."""
        return tuple(sorted(self.spec.capabilities))

    def consents(self, model: Model) -> Sequence[str]:
        """Return the consents that opening this model takes ("user-scripts", "pickle"); asked for before `open`."""
        return ()

    def requirements(self, info: ModelInfo) -> Sequence[str]:
        """Return PEP 508 requirements that opening a model like `info` adds to those of the spec. Light.

        A target that lacks one is told before work starts, when a chain is to end in such a model.
        """
        return ()

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> Session:
        """Load `model.folder` and return a session. options["threads"] is honoured. Raises EvaluationError."""
        raise NotImplementedError

"""The genai runtime: generation and scoring with onnxruntime-genai."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Result, Runtime, Session
from drupe.core.scoring import Sequences, right_padded, scored
from drupe.plugins.genai.providers import runtime_name
from drupe.plugins.onnx.providers import library_of

__all__ = ["GenAIRuntime", "GenAISession"]

_OPTIONS = ("threads",)
_MOST_TOGETHER = 32
"""Sequences that the library takes at once."""


class GenAIRuntime(Runtime):
    """Opens folders that hold a genai_config.json."""

    version = 1

    def options(self, accelerator: Accelerator, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take `threads`. Raises ConfigError for another option."""
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"the runtime genai has no option {name!r}; it has {', '.join(_OPTIONS)}")
        return dict(options)

    def capabilities(self, model: Model) -> Sequence[str]:
        """Generation; scoring too, unless the head was pruned to the last token."""
        return ("generate", "score")

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> Session:
        """Load the model. Raises EvaluationError with the library's reason."""
        import onnxruntime_genai as og

        provider = runtime_name(accelerator)
        try:
            _register(accelerator.execution_provider or "")
            config = og.Config(str(model.folder))
            # What is compiled for a provider says itself which of its graphs the provider opens, and how.
            if not model.attributes.get("ep_context"):
                config.clear_providers()
                if provider is not None:
                    config.append_provider(provider)
                    for key, value in accelerator.provider_options.items():
                        config.set_provider_option(provider, str(key), str(value))
            threads = options.get("threads")
            if threads:
                session_options = {"intra_op_num_threads": int(threads)}
                config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
            loaded = og.Model(config)
        except Exception as error:
            raise EvaluationError(f"onnxruntime-genai can't load the model: {error}") from error
        constants = model.attributes.get("constant_inputs")
        return GenAISession(loaded, model.folder, model.folder / str(constants) if constants else None)


class GenAISession(Session):
    """A loaded GenAI model. One call at a time. adapter: an extracted adapter's weights, active in every call."""

    framework = "ONNX"

    def __init__(self, loaded: Any, folder: Path, adapter: Path | None = None) -> None:
        import onnxruntime_genai as og

        self._og = og
        self._model = loaded
        self._tokenizer = og.Tokenizer(loaded)
        self._adapters: Any = None
        if adapter is not None:
            self._adapters = og.Adapters(loaded)
            try:
                self._adapters.load(str(adapter), "adapter")
            except Exception as error:
                raise EvaluationError(f"onnxruntime-genai can't load the adapter {adapter.name}: {error}") from error
        self._encoder = _encoder(folder)
        settings = json.loads((folder / "genai_config.json").read_text())["model"]
        self._context = int(settings["context_length"])
        decoder = settings["decoder"]
        # A pipeline of fixed lengths takes a prompt in chunks, the last of them filled up.
        self._chunk = int(decoder.get("sliding_window", {}).get("window_size") or 1) if decoder.get("pipeline") else 1
        told = settings.get("pad_token_id")
        # A pipeline's graphs take one sequence.
        self._pad = told if isinstance(told, int) and not decoder.get("pipeline") else None

    def generate(self, prompt: str | np.ndarray, options: GenerateOptions) -> Result:
        """See Session.generate. Raises EvaluationError when the prompt leaves no room in the context."""
        ids = self.tokenize(prompt) if isinstance(prompt, str) else np.asarray(prompt, dtype=np.int64)
        taken = self._taken(len(ids))
        room = self._context - taken
        if len(ids) == 0 or room < 1:
            chunks = f", in chunks of {self._chunk}," if self._chunk > 1 else ""
            raise EvaluationError(
                f"a prompt of {len(ids)} tokens{chunks} can't be answered in a context of {self._context} tokens"
            )
        started = time.perf_counter()
        generator = self._generator(taken + min(options.max_new_tokens, room), options)
        generator.append_tokens(ids.astype(np.int32))
        tokens: list[int] = []
        seconds: list[float] = []
        while not generator.is_done() and len(tokens) < options.max_new_tokens:
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            seconds.append(time.perf_counter() - started)
            tokens.append(token)
            if options.stop:
                text = self._decode(tokens)
                if options.cut(text) != text:
                    break
        text = options.cut(self._decode(tokens))
        return Result(
            {
                "text": text,
                "token_ids": np.asarray(tokens, dtype=np.int64),
                "token_seconds": np.asarray(seconds, dtype=np.float64),
            }
        )

    def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
        """See Session.score. The whole sequence is scored in one prefill, or in one for each of its chunks."""
        return Result(scored(self._logits(np.asarray(input_ids, dtype=np.int32)), labels))

    def score_batch(self, sequences: Sequences) -> Sequence[Result]:
        """See Session.score_batch. The library masks by the padding token: a sequence that holds it goes alone."""
        together = [at for at, (ids, _) in enumerate(sequences) if self._pad is not None and self._pad not in ids]
        found: dict[int, Result] = {}
        for start in range(0, len(together), _MOST_TOGETHER):
            part = together[start : start + _MOST_TOGETHER]
            found |= zip(part, self._together([sequences[at] for at in part]), strict=True)
        return [found[at] if at in found else self.score(ids, labels) for at, (ids, labels) in enumerate(sequences)]

    def _together(self, sequences: Sequences) -> list[Result]:
        ids, _ = right_padded(sequences, self._pad or 0)
        generator = self._generator(ids.shape[1] + 1, GenerateOptions(), batch=len(ids))
        generator.append_tokens(ids.astype(np.int32))
        logits = np.asarray(generator.get_output("logits"))
        if logits.shape[1] != ids.shape[1]:
            raise EvaluationError(
                "the model gives logits of the last token only (prune_lm_head), so sequences can't be scored"
            )
        return [Result(scored(row, labels)) for row, (_, labels) in zip(logits, sequences, strict=True)]

    def tokenize(self, text: str, *, special_tokens: bool = True) -> np.ndarray:
        """See Session.tokenize."""
        if self._encoder is not None:
            return np.asarray(self._encoder.encode(text, add_special_tokens=special_tokens).ids, dtype=np.int64)
        return np.asarray(self._tokenizer.encode(text), dtype=np.int64)

    def close(self) -> None:
        """Free the model."""
        del self._adapters, self._tokenizer, self._model

    def _taken(self, length: int) -> int:
        """Return the tokens that a prompt of some length takes of the context."""
        return -(-length // self._chunk) * self._chunk

    def _logits(self, ids: np.ndarray) -> np.ndarray:
        """Return the logits of all tokens, shaped (tokens, vocabulary).

        A pipeline gives those of the last chunk of a prompt: each chunk is the last of a prompt of its own.
        """
        found = []
        step = self._chunk if self._chunk > 1 else max(1, len(ids))
        for start in range(0, len(ids), step):
            end = min(len(ids), start + step)
            generator = self._generator(min(self._context, self._taken(end) + 1), GenerateOptions())
            generator.append_tokens(ids[:end])
            logits = np.asarray(generator.get_output("logits"))[0]
            if len(logits) < end - start:
                raise EvaluationError(
                    "the model gives logits of the last token only (prune_lm_head), so sequences can't be scored"
                )
            found.append(logits[: end - start].copy())
        return np.concatenate(found)

    def _decode(self, tokens: Sequence[int]) -> str:
        if self._encoder is not None:
            return str(self._encoder.decode(list(tokens), skip_special_tokens=True))
        return str(self._tokenizer.decode(np.asarray(tokens, dtype=np.int32)))

    def _generator(self, max_length: int, options: GenerateOptions, *, batch: int = 1) -> Any:
        parameters = self._og.GeneratorParams(self._model)
        settings: dict[str, Any] = {"max_length": max_length, "do_sample": options.temperature > 0, "batch_size": batch}
        if options.temperature > 0:
            settings |= {
                "temperature": options.temperature,
                "top_p": options.top_p,
                "random_seed": options.seed,
            }
        else:
            # Greedy means greedy, whatever the folder's own search settings say.
            settings |= {"top_k": 1, "num_beams": 1, "repetition_penalty": 1.0}
        parameters.set_search_options(**settings)
        generator = self._og.Generator(self._model, parameters)
        if self._adapters is not None:
            generator.set_active_adapter(self._adapters, "adapter")
        return generator


@functools.cache
def _register(provider: str) -> None:
    """Make a provider's library known to onnxruntime-genai, once in a process, where a package brings one."""
    import onnxruntime_genai as og

    library = library_of(provider)
    if library is not None:
        og.register_execution_provider_library(provider, library)


def _encoder(folder: Path) -> Any:
    """Return the folder's own fast tokenizer, which the training used as well; None where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))

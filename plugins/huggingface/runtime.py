"""The runtime `hf`: Hugging Face models run by transformers on a CPU or GPU."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, DrupeError, EvaluationError
from drupe.core.model import Model, ModelInfo
from drupe.core.runtimes import GenerateOptions, Result, Runtime, Session
from drupe.core.scoring import Sequences, right_padded, scored_places
from drupe.plugins.huggingface.io_config import told_shapes
from drupe.plugins.huggingface.loading import infer_task, load_model, load_tokenizer, ready_device, torch_dtype

__all__ = ["TransformersRuntime", "TransformersSession", "as_array", "has_tokenizer"]

_READERS: Mapping[str, str] = {"compressed-tensors": "compressed-tensors>=0.19", "torchao": "torchao>=0.18"}
"""Quantization method → what transformers opens such models with, of those that Drupe's passes make."""
_OPTIONS = ("threads", "dtype", "attn_implementation")


class TransformersRuntime(Runtime):
    """Opens `hf` models, adapter included. Options: threads, dtype, attn_implementation."""

    version = 1

    def options(self, accelerator: Accelerator, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Runtime.options."""
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"the runtime {self.spec.name} has no option {name!r}; it has: {', '.join(_OPTIONS)}")
        return dict(options)

    def capabilities(self, model: Model) -> Sequence[str]:
        """See Runtime.capabilities: what predicts the next token generates and scores as well."""
        task = model.attributes.get("task") or infer_task(model.attributes.get("architecture"))
        if task in ("text-generation", "text-generation-with-past", "causal-lm"):
            return ("forward", "generate", "score")
        return ("forward",)

    def requirements(self, info: ModelInfo) -> Sequence[str]:
        """See Runtime.requirements: quantized checkpoints are read by their own libraries."""
        reader = _READERS.get(str(info.attributes.get("quantization")))
        return () if reader is None else (reader,)

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> Session:
        """See Runtime.open."""
        device = ready_device(accelerator, options.get("threads"))
        extra = {"attn_implementation": options["attn_implementation"]} if options.get("attn_implementation") else {}
        try:
            dtype = torch_dtype(options.get("dtype"))
            loaded = load_model(model, device=device, dtype=dtype, **extra)
            tokenizer = load_tokenizer(model) if has_tokenizer(model) else None
        except DrupeError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise EvaluationError(f"the hf model can't be loaded: {error}") from error
        session = TransformersSession(loaded, tokenizer, device, model)
        session.capabilities = self.capabilities(model)
        return session


class TransformersSession(Session):
    """A loaded transformers model and its tokenizer (or None)."""

    framework = "PyTorch"
    takes_more = True

    def __init__(self, loaded: Any, tokenizer: Any, device: str, model: Model) -> None:
        self._loaded = loaded
        self._tokenizer = tokenizer
        self._device = device
        self._model = model
        base = loaded.get_base_model() if hasattr(loaded, "get_base_model") else loaded
        self._parameters = tuple(inspect.signature(base.forward).parameters)
        self._ends = _ends(base, tokenizer)

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """See Session.forward. Outputs are those that are one array; half precision comes back as float32."""
        import torch

        unknown = [name for name in batch if name not in self._parameters]
        if unknown:
            takes = ", ".join(name for name in self._parameters if name not in ("kwargs", "self"))
            raise EvaluationError(f"the model takes no input {', '.join(map(repr, unknown))}; it takes: {takes}")
        inputs: dict[str, Any] = {
            name: torch.from_numpy(np.asarray(value, order="C")).to(self._device) for name, value in batch.items()
        }
        if (past := inputs.get("past_key_values")) is not None and past.ndim == 6:
            # Keys and values of earlier tokens: (layers, 2, batch, heads, length, size).
            inputs["past_key_values"] = _cache(past)
        if "use_cache" in self._parameters:
            inputs["use_cache"] = False
        with torch.inference_mode():
            outputs = self._loaded(**inputs, return_dict=True)
        arrays = {name: as_array(value) for name, value in outputs.items() if isinstance(value, torch.Tensor)}
        return Result(arrays)

    def generate(self, prompt: str | np.ndarray, options: GenerateOptions) -> Result:
        """See Session.generate. An end-of-text token ends the answer and is not part of the text."""
        import torch

        ids = self.tokenize(prompt) if isinstance(prompt, str) else np.asarray(prompt, dtype=np.int64)
        if not len(ids):
            raise EvaluationError("the prompt has no tokens; there is nothing to go on from")
        random = torch.Generator().manual_seed(options.seed)
        last = {"logits_to_keep": 1} if "logits_to_keep" in self._parameters else {}
        found: list[int] = []
        seconds: list[float] = []
        started = time.perf_counter()
        with torch.inference_mode():
            step = torch.from_numpy(ids)[None].to(self._device)
            past = None
            while len(found) < options.max_new_tokens:
                outputs = self._loaded(input_ids=step, past_key_values=past, use_cache=True, **last)
                past = outputs.past_key_values
                token = _pick(outputs.logits[0, -1].float(), options, random)
                found.append(token)
                seconds.append(time.perf_counter() - started)
                if token in self._ends or (options.stop and options.cut(text := self._decode(found)) != text):
                    break
                step = torch.tensor([[token]], device=self._device)
        outputs_ = {
            "text": options.cut(self._decode(found)),
            "token_ids": np.asarray(found, dtype=np.int64),
            "token_seconds": np.asarray(seconds, dtype=np.float64),
        }
        return Result(outputs_)

    def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
        """See Session.score."""
        return self.score_batch([(np.asarray(input_ids), labels)])[0]

    def score_batch(self, sequences: Sequences) -> Sequence[Result]:
        """See Session.score_batch."""
        import torch

        ids, mask = right_padded(sequences)
        places = [scored_places(labels) for _, labels in sequences]
        # Logits of the positions that any of them scores: the vocabulary makes the others costly.
        kept = np.unique(np.concatenate(places)) - 1
        if not len(kept):
            return [Result(_unscored(len(labels))) for _, labels in sequences]
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self._device)}
        if not mask.all():
            inputs["attention_mask"] = torch.from_numpy(mask).to(self._device)
        keep = torch.from_numpy(kept).to(self._device)
        with torch.inference_mode():
            if "logits_to_keep" in self._parameters:
                logits = self._loaded(**inputs, use_cache=False, logits_to_keep=keep).logits
            else:
                logits = self._loaded(**inputs, use_cache=False).logits[:, keep]
            return [
                Result(self._judged(row, np.searchsorted(kept, at - 1), at, labels))
                for row, at, (_, labels) in zip(logits, places, sequences, strict=True)
            ]

    def _judged(self, logits: Any, rows: np.ndarray, places: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return what `score` gives of one sequence. rows: which of `logits` tell of the positions in `places`."""
        import torch

        found = _unscored(len(labels))
        if len(places):
            targets = torch.from_numpy(np.asarray(labels, dtype=np.int64)[places]).to(self._device)
            table = torch.log_softmax(logits[torch.from_numpy(rows).to(self._device)].double(), dim=-1)
            found["logprobs"][places] = table.gather(1, targets[:, None])[:, 0].cpu().numpy()
            found["greedy"][places] = (table.argmax(dim=-1) == targets).cpu().numpy()
        return found

    def tokenize(self, text: str, *, special_tokens: bool = True) -> np.ndarray:
        """See Session.tokenize. A text that begins with the begin-of-text token, as chats do, gets no other."""
        tokenizer = self._needed_tokenizer()
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=special_tokens and not begins)["input_ids"]
        return np.asarray(ids, dtype=np.int64)

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        """See Session.input_shapes: as io_config says, else what the tokenizer gives and the model takes."""
        told = self._model.attributes.get("io_config")
        if isinstance(told, Mapping) and (shapes := told_shapes(told)):
            return shapes
        if self._tokenizer is not None:
            names = [name for name in self._tokenizer.model_input_names if name in self._parameters]
            return dict.fromkeys(names, (("batch", "sequence"), "int64"))
        config = getattr(self._loaded, "config", None)
        size = getattr(config, "image_size", None)
        if "pixel_values" in self._parameters and size is not None:
            height, width = (size, size) if isinstance(size, int) else tuple(size)
            return {"pixel_values": (("batch", getattr(config, "num_channels", 3), height, width), "float32")}
        raise NotImplementedError

    def close(self) -> None:
        """See Session.close."""
        self._loaded = None
        if self._device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _needed_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise EvaluationError("the model has no tokenizer, so it takes token ids only")
        return self._tokenizer

    def _decode(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            return ""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _unscored(length: int) -> dict[str, np.ndarray]:
    return {"logprobs": np.full(length, np.nan), "greedy": np.zeros(length, dtype=bool)}


def has_tokenizer(model: Model) -> bool:
    """Whether a tokenizer lies beside the model."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
    return any((model.folder / name).is_file() for name in names)


def _cache(past: Any) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in enumerate(past):
        cache.update(keys, values, layer)
    return cache


def as_array(value: Any) -> np.ndarray:
    """Return a tensor's numbers; those of less than four bytes with a fraction as float32."""
    if value.is_floating_point() and value.element_size() < 4:
        value = value.float()
    array: np.ndarray = value.detach().cpu().numpy()
    return array


def _ends(base: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a text: the generation config's, or else the model's, and the tokenizer's."""
    generation = getattr(base, "generation_config", None)
    found: set[int] = set()
    for holder in (generation, base.config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
            break
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)


def _pick(logits: Any, options: GenerateOptions, random: Any) -> int:
    import torch

    if options.temperature <= 0:
        return int(torch.argmax(logits))
    chances = torch.softmax(logits.cpu() / options.temperature, dim=-1)
    if options.top_p < 1:
        ordered, order = torch.sort(chances, descending=True)
        beyond = torch.cumsum(ordered, dim=-1) - ordered > options.top_p
        chances[order[beyond]] = 0.0
    return int(torch.multinomial(chances, 1, generator=random))

"""The language model that lm-evaluation-harness asks, answered by a session of whatever runtime serves the model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from drupe.core.errors import EvaluationError
from drupe.core.runtimes import GenerateOptions, Session
from drupe.plugins.metrics.batched_scores import BatchedScores, BatchSize, Scored

__all__ = ["SessionLM"]

_DEFAULT_LENGTH = 2048
_GENERATION = ("do_sample", "temperature", "top_p")


class SessionLM(TemplateLM):  # type: ignore[misc]
    """Scores and generates by a session, as the harness's own classes do by theirs.

    folder: the model's; its tokenizer_config.json, config.json or genai_config.json tell context length and the tokens
    that begin and end a text. max_length: tokens that the model sees at most; longer prompts lose their beginning, and
    `truncated` counts them. batch_size, device: see BatchedScores. progress: called with the requests done, and their
    number. note: called with a sentence that the user should read.
    """

    def __init__(
        self,
        session: Session,
        folder: Path,
        *,
        max_length: int | None = None,
        batch_size: BatchSize = 1,
        device: str = "cpu",
        seed: int = 0,
        progress: Callable[[int, int, str], None] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self._session = session
        self._folder = folder
        self._seed = seed
        self._progress = progress or (lambda done, total, message: None)
        self._scores = BatchedScores(
            session,
            batch_size,
            lambda done, total: self._progress(done, total, "scoring"),
            note or (lambda text: None),
            device=device,
        )
        self._configs = {name: _read(folder / name) for name in ("tokenizer_config.json", "config.json")}
        self._genai = _read(folder / "genai_config.json").get("model", {})
        context = self._context()
        told = max_length or context or _DEFAULT_LENGTH
        # The token that is scored last is given to the model as well; a genai model also wants room for one more.
        room = (context - bool(self._genai)) if context else told + 1
        self._room = min(told + 1, room)
        self.truncated = 0
        self._eot = self._token_id("eos")
        self._bos = self._token_id("bos")

    @property
    def max_length(self) -> int:
        """How many tokens there may be before the one that is scored."""
        return self._room - 1

    @property
    def max_gen_toks(self) -> int:
        """How many tokens a task gets that does not say how many it needs; the harness's own number."""
        return 256

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if self._eot is None:
            raise EvaluationError(f"neither tokenizer_config.json nor config.json of {self._folder.name} has eos_token")
        return self._eot

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without context begins after: the one that begins texts, or else ends them."""
        return self.eot_token_id if self._bos is None else self._bos

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's caches, which are not used."""
        return self._folder.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the model's own chat template."""
        return str(self._chat_tokenizer().chat_template) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as the model's own template writes it."""
        return str(
            self._chat_tokenizer().apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text; one that begins with the begin-of-text token gets no other."""
        if add_special_tokens is None:
            begin = self._special_text("bos") or self._special_text("eos")
            add_special_tokens = not (begin and string.startswith(begin))
        return [int(token) for token in self._session.tokenize(string, special_tokens=add_special_tokens)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation and whether each of its tokens is the likeliest one."""
        sequences = []
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise EvaluationError(
                    f"a continuation of {len(continuation)} tokens does not fit into max_length {self.max_length}"
                )
            if len(context) + len(continuation) > self._room:
                self.truncated += 1
            sequences.append((tuple((context + continuation)[-self._room :]), len(continuation)))
        return self._scores.of(sequences)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows that each give as much context as there is."""
        sequences: list[Scored] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                sequences.append((tuple(context) + tuple(continuation), len(continuation)))
                owners.append(owner)
        found = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._scores.of(sequences), strict=True):
            found[owner] += logprob
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows each prompt, up to the first of its stops."""
        found = []
        sampled = itertools.count()
        for done, request in enumerate(requests):
            self._progress(done, len(requests), "generating")
            prompt, asked = request.args
            options = normalize_gen_kwargs(asked, self.max_gen_toks)
            stops = [stop for stop in handle_stop_sequences(options.pop("until", None), eos=None) if stop]
            tokens = int(options.pop("max_gen_toks"))
            draws = bool(options.get("do_sample")) and float(options.get("temperature", 1.0)) > 0
            for name, value in options.items():
                if name not in _GENERATION and (draws or name not in ("top_k", "min_p")):
                    raise EvaluationError(
                        f"task {request.task_name}: generation_kwargs.{name} is {value!r}, which sessions can't do; "
                        f"they know until, max_gen_toks, {', '.join(_GENERATION)}"
                    )
            kept = self.max_length - tokens
            if kept < 1:
                raise EvaluationError(
                    f"task {request.task_name} generates {tokens} tokens, which leaves no room for a prompt in a "
                    f"max_length of {self.max_length}; give a larger max_length, or a task with a lower max_gen_toks"
                )
            ids = self.tok_encode(prompt)
            self.truncated += len(ids) > kept
            how = GenerateOptions(
                max_new_tokens=tokens,
                stop=tuple(stops),
                temperature=float(options.get("temperature", 1.0)) if draws else 0.0,
                top_p=float(options.get("top_p", 1.0)),
                # What is drawn several times for one prompt is to differ.
                seed=self._seed + next(sampled) if draws else self._seed,
            )
            text = str(self._session.generate(np.asarray(ids[-kept:], dtype=np.int64), how).outputs["text"])
            for stop in stops:
                text = text.split(stop)[0]
            found.append(text)
        return found

    def _context(self) -> int | None:
        config = self._configs["config.json"]
        places: list[Mapping[str, Any]] = [self._genai, config, config.get("text_config") or {}]
        for place in places:
            for name in ("context_length", "n_positions", "max_position_embeddings", "n_ctx"):
                if isinstance(place.get(name), int):
                    return int(place[name])
        return None

    def _token_id(self, which: str) -> int | None:
        """Return the id of the bos or eos token: the tokenizer's, or else the model's."""
        text = self._special_text(which)
        if text:
            ids = self._session.tokenize(text, special_tokens=False)
            if len(ids) == 1:
                return int(ids[0])
        if text is None and which == "bos" and self._configs["tokenizer_config.json"]:
            return None
        for place in (self._configs["config.json"], self._genai):
            found = place.get(f"{which}_token_id")
            found = found[0] if isinstance(found, list) and found else found
            if isinstance(found, int):
                return found
        return None

    def _special_text(self, which: str) -> str | None:
        found = self._configs["tokenizer_config.json"].get(f"{which}_token")
        found = found.get("content") if isinstance(found, Mapping) else found
        return found if isinstance(found, str) else None

    def _chat_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise EvaluationError(f"apply_chat_template: the model's tokenizer can't be read: {error}") from error
        if not tokenizer.chat_template:
            raise EvaluationError("apply_chat_template: the model's tokenizer has no chat template; leave it out")
        return tokenizer


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

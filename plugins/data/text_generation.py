"""Text generation data: rows become texts, texts become tokens, tokens become samples.

Texts with a prompt and an answer, and chats, are one sample a row, and loss is taken on the answer only. Running text
is joined into blocks, or one sample a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.plugins.data.accounting import Accounting
from drupe.plugins.data.blocks import Block, joined, line_by_line
from drupe.plugins.data.options import PreProcess
from drupe.plugins.data.rows import Row, columns_of
from drupe.plugins.data.templates import Template, content_key, text_of

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Text", "TextGeneration"]

Tokenizer = Any


@dataclass(frozen=True)
class Text:
    """A row as text. prompt and answer are None for running text; whole: prompt and answer together."""

    id: str
    whole: str
    prompt: str | None = None
    answer: str | None = None


class TextGeneration:
    """Turns rows into samples as the options say. tokenizer None: samples hold text only."""

    def __init__(
        self, options: PreProcess, tokenizer: Tokenizer | None, formatter: Callable[[Row], str] | None, seed: int
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._formatter = formatter
        self._seed = options.random_seed if options.random_seed is not None else seed

    def samples(self, rows: Sequence[Row], account: Accounting) -> list[Sample]:
        """Return the samples. Raises ConfigError for a column that is not there."""
        options = self._options
        texts = self._texts(rows, account)
        if self._asks:
            texts = self._first(texts, account)
            return [sample for text in texts if (sample := self._with_answer(text, account)) is not None]
        if self._tokenizer is None:
            texts = self._first(texts, account)
            return [Sample(t.id, {"text": t.whole}, content_key=content_key(t.whole)) for t in texts]
        strategy: str = options.strategy or "join"
        if strategy.startswith("line-by-line"):
            if not strategy.endswith("random") and not options.drop_short_sequences:
                texts = self._first(texts, account)
            ids = self._tokenize([t.whole for t in texts], account)
            rows_of_tokens = [(t.id, t.whole, row) for t, row in zip(texts, ids, strict=True)]
            blocks = line_by_line(rows_of_tokens, options, self._seed, account)
        else:
            ids = self._tokenize([t.whole for t in texts], account)
            joiner = self._encode(options.joiner, plain=True) if options.joiner else []
            blocks = joined(ids, joiner, options, self._seed, account)
        return [self._of_block(block) for block in blocks]

    @property
    def _asks(self) -> bool:
        return self._options.prompt_template is not None or self._options.chat_template is not None

    def _first(self, texts: list[Text], account: Accounting) -> list[Text]:
        kept = texts[: self._options.max_samples]
        account.drop("beyond max_samples", len(texts) - len(kept))
        return kept

    # Rows to texts

    def _texts(self, rows: Sequence[Row], account: Accounting) -> list[Text]:
        maker = self._maker(columns_of(rows)) if len(rows) else None
        found: list[Text] = []
        for index, row in enumerate(rows):
            assert maker is not None
            text = maker(f"{index:07}", row)
            if isinstance(text, str):
                account.drop(text)
            else:
                found.append(text)
        return found

    def _maker(self, columns: Sequence[str]) -> Callable[[str, Row], Text | str]:
        """Return what makes a Text of a row, or says why there is none."""
        options = self._options
        if options.prompt_template is not None:
            return self._answer_maker(options.prompt_template, columns)
        if options.chat_template is not None:
            return self._chat_maker(columns)
        if self._formatter is not None:
            formatter = self._formatter
            return lambda key, row: _plain(key, formatter(row))
        if options.text_template is not None:
            template = Template(options.text_template, "text_template")
            template.check(columns)
            return lambda key, row: _plain(key, template.fill(row))
        wanted = [options.text_cols] if isinstance(options.text_cols, str) else options.text_cols
        if wanted is None:
            wanted = ["text"] if "text" in columns or len(columns) != 1 else list(columns)
        absent = [name for name in wanted if name not in columns]
        if absent:
            raise ConfigError(
                f"text_cols: the data has no column {', '.join(map(repr, absent))}; it has: {', '.join(columns)}; "
                "name columns as text_cols, or write a text_template or a prompt_template"
            )
        return lambda key, row: _plain(key, text_of(row, wanted))

    def _answer_maker(self, prompt_text: str, columns: Sequence[str]) -> Callable[[str, Row], Text | str]:
        options = self._options
        prompt_template = Template(prompt_text, "prompt_template")
        if options.answer_col is not None:
            if options.answer_col not in columns:
                raise ConfigError(f"answer_col {options.answer_col!r} is not there; the data has: {', '.join(columns)}")
            answer_template = Template("{" + options.answer_col + "}", "answer_col")
        else:
            answer_template = Template(options.answer_template or "", "answer_template")
        prompt_template.check(columns)
        answer_template.check(columns)

        def make(key: str, row: Row) -> Text | str:
            prompt, answer = prompt_template.fill(row), answer_template.fill(row)
            if not prompt or not answer or not answer.strip():
                return "empty: a column of the prompt or answer is null or blank"
            if options.chat_template is not None:
                turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.strip()}]
                return self._chat(key, turns)
            return Text(key, prompt + answer, prompt, answer)

        return make

    def _chat_maker(self, columns: Sequence[str]) -> Callable[[str, Row], Text | str]:
        column = self._options.message_col
        if column not in columns:
            raise ConfigError(f"message_col {column!r} is not there; the data has: {', '.join(columns)}")

        def make(key: str, row: Row) -> Text | str:
            turns = row[column]
            if not turns:
                return "empty: no messages"
            whole = isinstance(turns, list) and all(
                isinstance(t, dict) and {"role", "content"} <= set(t) for t in turns
            )
            if not whole:
                raise ConfigError(
                    f"row {int(key)}: {column} must be a list of messages with role and content; found {turns!r:.80}"
                )
            if turns[-1]["role"] != "assistant":
                return "no answer: the last message is not the assistant's"
            if len(turns) < 2:
                return "no question: the answer stands alone"
            if not turns[-1]["content"]:
                return "empty: the answer is null or blank"
            return self._chat(key, turns)

        return make

    def _chat(self, key: str, turns: Sequence[Row]) -> Text:
        if self._tokenizer is None:
            raise ConfigError("chat_template needs a tokenizer: the model brings none; name one as model_name")
        template = self._options.chat_template
        options: dict[str, Any] = {"tokenize": False}
        if isinstance(template, str):
            options["chat_template"] = template
        elif self._tokenizer.chat_template is None:
            raise ConfigError("chat_template: true, but the tokenizer has no chat template; write one as chat_template")
        try:
            prompt = self._tokenizer.apply_chat_template(list(turns[:-1]), add_generation_prompt=True, **options)
            whole = self._tokenizer.apply_chat_template(list(turns), **options)
        except Exception as error:  # templates raise what they like
            raise ConfigError(f"chat_template on row {int(key)}: {type(error).__name__}: {error}") from error
        answer = str(turns[-1]["content"])
        if whole.startswith(prompt):
            # What the template puts after the end-of-text token is no part of the answer.
            end = self._tokenizer.eos_token or ""
            rest = whole[len(prompt) :]
            answer = rest[: rest.rindex(end)] if end and end in rest else rest
        return Text(key, prompt + answer, prompt, answer)

    # Texts to tokens

    def _encode(self, text: str, *, plain: bool) -> list[int]:
        assert self._tokenizer is not None
        ids: list[int] = self._tokenizer(text, add_special_tokens=not plain)["input_ids"]
        return ids

    def _tokenize(self, texts: Sequence[str], account: Accounting) -> list[list[int]]:
        """Tokenize running text: with the tokenizer's own special tokens, and end-of-text after each, if asked."""
        assert self._tokenizer is not None
        special = self._options.add_special_tokens is not False
        end = self._tokenizer.eos_token_id
        size = self._options.processing_batch_size
        found: list[list[int]] = []
        for start in range(0, len(texts), size):
            batch = list(texts[start : start + size])
            for ids in self._tokenizer(batch, add_special_tokens=special, truncation=False)["input_ids"]:
                close = [end] if special and end is not None and (not ids or ids[-1] != end) else []
                found.append([*ids, *close])
        account.tokens += sum(map(len, found))
        return found

    def _with_answer(self, text: Text, account: Accounting) -> Sample | None:
        assert text.prompt is not None
        assert text.answer is not None
        inputs: dict[str, np.ndarray | str] = {"prompt": text.prompt, "text": text.whole}
        target, key = text.answer.strip(), content_key(text.prompt)
        if self._tokenizer is None:
            return Sample(text.id, inputs, target, key)
        # A chat template writes the special tokens itself.
        special = self._options.add_special_tokens is not False and self._options.chat_template is None
        prompt = self._encode(text.prompt, plain=not special)
        end = self._tokenizer.eos_token_id
        if special and end is not None and len(prompt) > 1 and prompt[-1] == end:
            prompt = prompt[:-1]
        whole = self._encode(text.whole, plain=not special)
        if special and end is not None and whole[-1] == end:
            whole = whole[:-1]
        if whole[: len(prompt)] != prompt:
            # The answer's first letters would merge with the prompt's last ones. Generation starts after the prompt's
            # own tokens, so training keeps them.
            whole = [*prompt, *self._encode(text.answer, plain=True)]
        if end is not None:
            whole = [*whole, end]
        account.tokens += len(whole)
        if len(whole) > self._options.max_seq_len:
            account.drop(f"longer than max_seq_len {self._options.max_seq_len}")
            return None
        labels = [-100] * len(prompt) + whole[len(prompt) :]
        return Sample(text.id, inputs | self._arrays(whole, labels), target, key)

    def _of_block(self, block: Block) -> Sample:
        assert self._tokenizer is not None
        text = block.text
        if text is None:
            text = self._tokenizer.decode(block.ids, skip_special_tokens=True)
        inputs: dict[str, np.ndarray | str] = {"text": text} | self._arrays(block.ids, block.labels)
        extras = {"overlaps": self._options.strategy} if block.overlaps else {}
        return Sample(block.id, inputs, None, content_key(text), extras)

    def _arrays(self, ids: Sequence[int], labels: Sequence[int]) -> dict[str, np.ndarray | str]:
        import numpy as np

        assert self._tokenizer is not None
        options = self._options
        missing = options.max_seq_len - len(ids) if options.pads else 0
        before, after = (missing, 0) if options.padding_side == "left" else (0, missing)
        pad = self._tokenizer.pad_token_id
        if missing and pad is None:
            raise ConfigError("padding: the tokenizer has neither a padding nor an end-of-text token")

        def spread(values: Sequence[int], fill: int) -> np.ndarray:
            return np.array([fill] * before + list(values) + [fill] * after, dtype=np.int64)

        found: dict[str, np.ndarray | str] = {"input_ids": spread(ids, pad or 0)}
        if options.use_attention_mask:
            found["attention_mask"] = spread([1] * len(ids), 0)
        found["labels"] = spread(labels, -100)
        return found


def _plain(key: str, text: str | None) -> Text | str:
    return Text(key, text) if text and text.strip() else "empty: no text"

"""Classification data: texts (one or a pair), or words with a label each, become token ids with a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drupe.core.data import Sample
from drupe.core.errors import ConfigError
from drupe.plugins.data.accounting import Accounting
from drupe.plugins.data.options import PreProcess
from drupe.plugins.data.rows import Row, columns_of
from drupe.plugins.data.templates import content_key

if TYPE_CHECKING:
    import numpy as np


__all__ = ["Classification"]

Tokenizer = Any


class Classification:
    """Turns rows into samples as the options say.

    inputs: what the tokenizer gives (input_ids, attention_mask, token_type_ids), int64 of one dimension. target: the
    label (int, or the text that stands in the data); with one label per word, an int64 array with a label per token,
    -100 where there is none.
    """

    def __init__(
        self, options: PreProcess, tokenizer: Tokenizer | None, label_ids: Mapping[str, int], per_word: bool
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._label_ids = label_ids
        self._per_word = per_word or options.is_split_into_words is True

    def samples(
        self, rows: Sequence[Row], label_names: Mapping[str, Sequence[str]], account: Accounting
    ) -> list[Sample]:
        """Return the samples. label_names: label column → the names of its classes. Raises ConfigError."""
        options = self._options
        kept = list(rows[: options.max_samples]) if options.max_samples is not None else list(rows)
        account.drop("beyond max_samples", len(rows) - len(kept))
        if not kept:
            return []
        columns = columns_of(kept)
        inputs = self._input_columns(columns)
        label = self._label_column(columns)
        mapping = self._mapping(label_names.get(label or "", ()), label)
        found = []
        for index, row in enumerate(kept):
            values = [row.get(name) for name in inputs]
            if any(value is None for value in values):
                account.drop(f"empty: {', '.join(n for n, v in zip(inputs, values, strict=True) if v is None)} is null")
                continue
            target = row.get(label) if label is not None else None
            found.append(self._sample(f"{index:07}", values, target, mapping, account))
        return found

    def _input_columns(self, columns: Sequence[str]) -> list[str]:
        wanted = self._options.input_cols
        names = [wanted] if isinstance(wanted, str) else list(wanted or ())
        if not names:
            names = [name for name in ("text", "sentence", "tokens") if name in columns][:1]
        absent = [name for name in names if name not in columns]
        if absent or not names:
            what = f"the data has no column {', '.join(map(repr, absent))}" if absent else "no column is named"
            raise ConfigError(f"input_cols: {what}; it has: {', '.join(columns)}")
        if len(names) > 2:
            raise ConfigError(f"input_cols: {len(names)} columns; expected one text, or two of a pair")
        return names

    def _label_column(self, columns: Sequence[str]) -> str | None:
        wanted = self._options.label_col
        if wanted is not None and wanted not in columns:
            raise ConfigError(f"label_col: the data has no column {wanted!r}; it has: {', '.join(columns)}")
        if wanted is None:
            return next((name for name in ("label", "labels", "ner_tags") if name in columns), None)
        return wanted

    def _mapping(self, names: Sequence[str], label: str | None) -> Mapping[Any, Any]:
        """Return label in the data → label of the model, where they are to be aligned."""
        if not self._options.align_labels:
            return {}
        if not self._label_ids:
            raise ConfigError("align_labels: the model's config names no labels (label2id)")
        known = {name.lower(): number for name, number in self._label_ids.items()}
        if not names:
            # The data gives the names themselves.
            return dict(self._label_ids) | known
        absent = [name for name in names if name.lower() not in known]
        if absent:
            raise ConfigError(
                f"align_labels: the model has no label {', '.join(map(repr, absent))} of column {label!r}; "
                f"it has: {', '.join(self._label_ids)}"
            )
        return {number: known[name.lower()] for number, name in enumerate(names)}

    def _sample(
        self, key: str, values: Sequence[Any], target: Any, mapping: Mapping[Any, Any], account: Accounting
    ) -> Sample:
        import numpy as np

        words = " ".join(" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)
        inputs: dict[str, np.ndarray | str] = {"text": words}
        if self._tokenizer is None:
            return Sample(key, inputs, self._mapped(target, mapping, key), content_key(words))
        options = self._options
        pads = options.pads
        if pads and options.max_length is None:
            raise ConfigError("padding: max_length needs a max_length: how long")
        encoded = self._tokenizer(
            *(value if self._per_word else str(value) for value in values),
            padding="max_length" if pads else False,
            truncation=options.truncation,
            max_length=options.max_length or _longest(self._tokenizer),
            is_split_into_words=self._per_word,
            add_special_tokens=options.add_special_tokens is not False,
        )
        inputs |= {name: np.asarray(value, dtype=np.int64) for name, value in encoded.items()}
        account.tokens += int(np.asarray(encoded["attention_mask"]).sum())
        if self._per_word and isinstance(target, list):
            words_of_tokens = encoded.word_ids()
            labels = _word_labels([self._mapped(label, mapping, key) for label in target], words_of_tokens)
            return Sample(key, inputs, labels, content_key(words))
        return Sample(key, inputs, self._mapped(target, mapping, key), content_key(words))

    def _mapped(self, label: Any, mapping: Mapping[Any, Any], key: str) -> Any:
        if not mapping or label is None:
            return label
        plain = label.lower() if isinstance(label, str) else label
        if label not in mapping and plain not in mapping:
            raise ConfigError(f"align_labels: row {int(key)} has the label {label!r}, which the model does not know")
        return mapping.get(label, mapping.get(plain))


def _longest(tokenizer: Tokenizer) -> int | None:
    # A tokenizer that knows no limit says so with a huge number.
    limit = int(tokenizer.model_max_length)
    return limit if limit < 1_000_000 else None


def _word_labels(labels: Sequence[Any], words: Sequence[int | None]) -> np.ndarray:
    """Give each word's label to its first token; the others, and special tokens, get -100."""
    import numpy as np

    found = []
    before: int | None = None
    for word in words:
        found.append(-100 if word is None or word == before else int(labels[word]))
        before = word
    return np.asarray(found, dtype=np.int64)

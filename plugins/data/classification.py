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
    label (int, or the text that stands in the data; None where there is none); with one label per word, an int64 array
    with a label per token, -100 where there is none.

    label_ids: the model's names of classes → its numbers. tags: a label per word is expected. longest: how many tokens
    the model has places for, where its tokenizer knows no limit.
    """

    def __init__(
        self,
        options: PreProcess,
        tokenizer: Tokenizer | None,
        label_ids: Mapping[str, int],
        *,
        tags: bool = False,
        longest: int | None = None,
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._label_ids = label_ids
        self._tags = tags
        self._per_word = tags or options.is_split_into_words is True
        self._longest = longest

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
        mapping = self._mapping(label_names.get(label or "", ()), label, account)
        found = []
        for index, row in enumerate(kept):
            values = [row.get(name) for name in inputs]
            if any(value is None for value in values):
                account.drop(f"empty: {', '.join(n for n, v in zip(inputs, values, strict=True) if v is None)} is null")
                continue
            target = row.get(label) if label is not None else None
            if target == "":
                # What nothing stands for in a csv file.
                target = None
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

    def _mapping(self, names: Sequence[str], label: str | None, account: Accounting) -> Mapping[Any, Any]:
        """Return label in the data → label of the model, where they are to be aligned.

        Where nothing is said, they are if the data names its classes and the model has all of those names: its numbers
        may stand for them in another order.
        """
        told = self._options.align_labels
        if told is False or (told is None and not names):
            return {}
        if told and not self._label_ids:
            raise ConfigError("align_labels: the model's config names no labels (label2id)")
        known = {name.lower(): number for name, number in self._label_ids.items()}
        if not names:
            # The data gives the names themselves.
            return dict(self._label_ids) | known
        absent = [name for name in names if name.lower() not in known]
        if absent and told is None:
            return {}
        if absent:
            raise ConfigError(
                f"align_labels: the model has no label {', '.join(map(repr, absent))} of column {label!r}; "
                f"it has: {', '.join(self._label_ids)}"
            )
        mapping = {number: known[name.lower()] for number, name in enumerate(names)}
        if any(number != other for number, other in mapping.items()):
            pairs = ", ".join(f"{name} {number} → {mapping[number]}" for number, name in enumerate(names[:10]))
            account.notes["labels"] = f"numbered by name as the model does: {pairs}"
        # Of a data set without labels, where -1 stands for none.
        return mapping | {-1: -1}

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
        longest = options.max_length or _longest(self._tokenizer) or self._longest
        encoded = self._tokenizer(
            *(self._words(value, key) if self._per_word else self._text(value, key) for value in values),
            padding="max_length" if pads else False,
            truncation=options.truncation and longest is not None,
            max_length=longest,
            is_split_into_words=self._per_word,
            add_special_tokens=options.add_special_tokens is not False,
        )
        inputs |= {name: np.asarray(value, dtype=np.int64) for name, value in encoded.items()}
        account.tokens += int(np.asarray(encoded["attention_mask"]).sum())
        account.cut_tokens(f"beyond {longest} tokens a text", _left_over(encoded))
        if self._per_word and isinstance(target, list):
            if len(target) != len(values[0]):
                raise ConfigError(f"row {int(key)}: {len(values[0])} words and {len(target)} labels; expected one each")
            numbers = [self._number(label, mapping, key) for label in target]
            return Sample(key, inputs, _word_labels(numbers, encoded.word_ids()), content_key(words))
        if self._tags and target is not None:
            raise ConfigError(f"row {int(key)}: the label is {target!r:.60}; expected a list with one for each word")
        return Sample(key, inputs, self._mapped(target, mapping, key), content_key(words))

    def _text(self, value: Any, key: str) -> str:
        if isinstance(value, (list, Mapping)):
            raise ConfigError(
                f"row {int(key)}: expected a text, found {value!r:.60}; of lists of words say is_split_into_words: true"
            )
        return str(value)

    def _words(self, value: Any, key: str) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ConfigError(f"row {int(key)}: expected a list of words, found {value!r:.60}")
        return value

    def _number(self, label: Any, mapping: Mapping[Any, Any], key: str) -> int:
        """Return the number of a word's label: by its name where it is one, as they stand in arrays of numbers."""
        if isinstance(label, str):
            known = {name.lower(): number for name, number in self._label_ids.items()}
            if label not in self._label_ids and label.lower() not in known:
                names = ", ".join(self._label_ids) or "none, as its config has no label2id; write numbers"
                raise ConfigError(f"row {int(key)} has the label {label!r}; the model's are: {names}")
            return self._label_ids.get(label, known.get(label.lower(), -100))
        if isinstance(label, bool) or not isinstance(label, int):
            raise ConfigError(f"row {int(key)} has the label {label!r} for a word; expected a whole number or a name")
        return label if label == -100 else int(self._mapped(label, mapping, key))

    def _mapped(self, label: Any, mapping: Mapping[Any, Any], key: str) -> Any:
        if not mapping or label is None or isinstance(label, list):
            return label
        plain = label.lower() if isinstance(label, str) else label
        if label not in mapping and plain not in mapping:
            raise ConfigError(f"row {int(key)} has the label {label!r}, which none of the model's classes goes by")
        return mapping.get(label, mapping.get(plain))


def _longest(tokenizer: Tokenizer) -> int | None:
    # A tokenizer that knows no limit says so with a huge number.
    limit = int(tokenizer.model_max_length)
    return limit if limit < 1_000_000 else None


def _left_over(encoded: Any) -> int:
    """Return how many tokens of a text were cut off."""
    parts = encoded.encodings or ()
    return sum(sum(1 for special in rest.special_tokens_mask if not special) for p in parts for rest in p.overflowing)


def _word_labels(labels: Sequence[int], words: Sequence[int | None]) -> np.ndarray:
    """Give each word's label to its first token; the others, and special tokens, get -100."""
    import numpy as np

    found = []
    before: int | None = None
    for word in words:
        found.append(-100 if word is None or word == before else labels[word])
        before = word
    return np.asarray(found, dtype=np.int64)

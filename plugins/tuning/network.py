"""The model as the training loop sees it: a layout of rows goes in, the summed loss of the answers comes out"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from drupe.plugins.tuning import attention
from drupe.plugins.tuning.batches import Layout, pack, padded
from drupe.plugins.tuning.elastic import Ranks
from drupe.plugins.tuning.head import head_loss
from drupe.plugins.tuning.rows import IGNORED, Row

__all__ = ["Network", "evaluating"]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for all modules but those of bitsandbytes, which would repack their weights for good on a CPU."""
    was = [(module, module.training) for module in model.modules()]
    for module, _ in was:
        module.training = type(module).__module__.startswith("bitsandbytes") and module.training
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


@dataclass
class Network:
    """A peft model and the ways in which its loss is computed.

    packed: rows lie end to end. split_head: hidden states come from the decoder and the loss from `head_loss`;
    otherwise the model computes logits itself. notes: why a faster way was not taken. Attention is exchanged for our
    own where it can be, for padded rows too: transformers looks at the positions to find out whether rows are packed,
    and waits for the device to answer. ranks: where the ranks of an elastic adapter are set.
    """

    model: Any
    device: Any
    smoothing: float = 0.0
    packed: bool = False
    split_head: bool = False
    notes: tuple[str, ...] = ()
    ranks: Ranks | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        device: Any,
        rows: Sequence[Row],
        packing: bool | str,
        smoothing: float,
        ranks: Ranks | None = None,
    ) -> Network:
        """Take the fastest way that gives this model's own loss, found by trying each on two short rows."""
        plain = cls(model, device, smoothing, ranks=ranks)
        probe = [_short(row) for row in sorted(rows, key=lambda row: row.length)[:2]]
        notes = []
        reference = plain._probe(padded(probe, plain.pad_id))
        split = cls(model, device, smoothing, split_head=True, ranks=ranks)
        close = plain._tolerance
        head_fits = split._head() is not None
        head_fits = head_fits and _differs(lambda: split._probe(padded(probe, plain.pad_id)), reference, close) is None
        if not head_fits:
            notes.append("logits are computed by the model itself: its head is more than one frozen linear layer")
        why = plain._cannot_exchange(max(row.length for row in rows))
        if why is None:
            before = plain._attention
            attention.register()
            model.get_base_model().set_attn_implementation(attention.PACKED)
            if packing is not False:
                packed = cls(model, device, smoothing, True, head_fits, tuple(notes), ranks)
                why = _differs(lambda: packed._probe(pack(probe)), reference, close)
                if why is None:
                    return packed
            network = cls(model, device, smoothing, False, head_fits, tuple(notes), ranks)
            if _differs(lambda: network._probe(padded(probe, plain.pad_id)), reference, close) is not None:
                model.get_base_model().set_attn_implementation(before)
        if packing is True:
            from drupe.core.errors import ConfigError

            raise ConfigError(
                f"packing: {type(model.get_base_model()).__name__} can't be trained on packed rows: {why}"
            )
        if packing is not False:
            notes.append(f"rows are padded: {why}")
        return cls(model, device, smoothing, False, head_fits, tuple(notes), ranks)

    @property
    def pad_id(self) -> int:
        """The token that fills rows; what it is does not matter, since nothing attends to it."""
        pad = getattr(self.model.config, "pad_token_id", None)
        return pad if isinstance(pad, int) and pad >= 0 else 0

    def loss(self, layout: Layout) -> Any:
        """Return the summed cross-entropy of the layout's answer tokens, a float32 scalar."""
        import torch

        def tensor(array: Any) -> Any:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        extra = attention.packed_arguments([length for _, length in layout.rows], self.device) if self.packed else {}
        if self.ranks is not None:
            extra["ranks"] = tensor(layout.token_ranks())
        return self.loss_of(
            tensor(layout.input_ids), tensor(layout.position_ids), tensor(layout.predict), tensor(layout.targets), extra
        )

    def loss_of(self, input_ids: Any, position_ids: Any, predict: Any, targets: Any, extra: dict[str, Any]) -> Any:
        """As `loss`, on tensors that lie on the device already."""
        from torch.nn.functional import cross_entropy

        inputs = {"input_ids": input_ids, "use_cache": False, **extra}
        if self.ranks is not None:
            self.ranks.set(inputs.pop("ranks"))
        if self._takes_positions:
            inputs["position_ids"] = position_ids
        if self.split_head:
            head = self._head()
            hidden = self._decoder(**inputs).last_hidden_state
            chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, predict)
            return head_loss(chosen, head.weight, head.bias, targets, self.smoothing)
        logits = self.model.get_base_model()(**inputs).logits
        chosen = logits.reshape(-1, logits.shape[-1]).index_select(0, predict).float()
        return cross_entropy(chosen, targets, reduction="sum", label_smoothing=self.smoothing, ignore_index=IGNORED)

    @property
    def _decoder(self) -> Callable[..., Any]:
        decoder: Callable[..., Any] = self.model.get_base_model().get_decoder()
        return decoder

    @property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.model.get_base_model().forward).parameters

    @property
    def _attention(self) -> str:
        return str(self.model.get_base_model().config._attn_implementation)

    @property
    def _tolerance(self) -> float:
        """How much rounding may move a loss: by thousandths in half precision, hardly in float32."""
        import torch

        return 1e-3 if self.model.get_base_model().dtype == torch.float32 else 2e-2

    def _head(self) -> Any:
        """Return the output layer when it is a frozen linear layer, else None."""
        import torch

        base = self.model.get_base_model()
        head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        if head is None or type(head) is not torch.nn.Linear or any(p.requires_grad for p in head.parameters()):
            return None
        decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
        return head if decoder is not None and decoder is not base else None

    def _cannot_exchange(self, longest: int) -> str | None:
        base = self.model.get_base_model()
        if not getattr(base, "_supports_attention_backend", False):
            return "its attention can't be exchanged"
        if not self._takes_positions:
            return "it takes no position_ids"
        config = base.config.get_text_config()
        other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if other:
            return f"it has layers of type {', '.join(sorted(other))}"
        window = getattr(config, "sliding_window", None)
        if window and getattr(config, "use_sliding_window", True) and window < longest:
            return f"rows of {longest} tokens are longer than its attention window of {window}"
        return None

    def _probe(self, layout: Layout) -> float:
        import torch

        with torch.no_grad(), evaluating(self.model):
            return float(self.loss(layout)) / layout.targets.size


def _short(row: Row) -> Row:
    """Return the row, or its end where it is long: the probe must judge at least its last answer token."""
    keep = 64
    if row.length <= keep:
        return row
    start = max(0, int(row.positions[-1]) + 2 - keep)
    inside = row.positions >= start
    return Row(
        row.id, row.ids[start : start + keep], row.positions[inside] - start, row.targets[inside], row.content_key
    )


def _differs(attempt: Callable[[], float], reference: float, tolerance: float) -> str | None:
    """Return why an attempt fails or gives another loss than the reference, beyond rounding; None where it agrees."""
    try:
        value = attempt()
    except (NotImplementedError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as fault:
        return str(fault).splitlines()[0] if str(fault) else type(fault).__name__
    if abs(value - reference) <= tolerance * max(1.0, abs(reference)):
        return None
    return f"its loss on packed rows is {value:.4f} and on padded ones {reference:.4f}"

"""Attention for packed rows: registered with transformers under one name, so that every model that goes through its
attention interface can be trained on rows laid end to end without one row seeing another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["PACKED", "packed_arguments", "register"]

PACKED = "drupe_packed"

_MEANINGFUL = ("softcap", "s_aux", "sinks", "position_bias")
"""Arguments of some models' attention that change its result and that the kernels used here can't follow."""


def register() -> None:
    """Make `PACKED` known to transformers. Models ask for no mask then: rows are told apart by their lengths."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_arguments(lengths: Sequence[int], device: Any) -> dict[str, Any]:
    """Return what a model's forward is given beside its inputs, so that it reaches `packed_attention`.

    On a GPU the row limits are a tensor of fixed size for a fixed number of rows, so that a captured graph can be
    replayed with others.
    """
    import torch

    if torch.device(device).type != "cuda":
        return {"packed_lengths": tuple(int(length) for length in lengths)}
    limits = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    limits[1:] = torch.tensor(list(lengths), dtype=torch.int32).cumsum(0)
    limits = limits.to(device, non_blocking=True)
    longest = int(max(lengths))
    return {"cu_seq_lens_q": limits, "cu_seq_lens_k": limits, "max_length_q": longest, "max_length_k": longest}


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Causal attention within each row. query, key, value: (batch, heads, tokens, width); gives (batch, tokens, …).

    Packed rows come in a batch of one with their lengths; without lengths each row of the batch is one.

    Raises NotImplementedError for what it can't follow: soft caps, sinks, short windows, dropout on a GPU.
    """
    for name in _MEANINGFUL:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"packed attention has no {name}")
    limits = kwargs.get("cu_seq_lens_q")
    lengths: tuple[int, ...] | None = kwargs.get("packed_lengths")
    if limits is None and lengths is None:
        longest = query.shape[2]
    else:
        longest = kwargs["max_length_q"] if lengths is None else max(lengths)
    window = kwargs.get("sliding_window")
    if window is not None and window < longest:
        raise NotImplementedError(f"packed attention has no window of {window} for rows of {longest}")
    if kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise NotImplementedError("packed attention is causal")
    if limits is None and lengths is None:
        return _side_by_side(query, key, value, scaling, dropout), None
    if lengths is None:
        return _varlen(query, key, value, limits, longest, scaling, dropout), None
    return _by_row(query, key, value, lengths, scaling, dropout), None


def _side_by_side(query: Any, key: Any, value: Any, scaling: float | None, dropout: float) -> Any:
    """Rows padded on the right: causal attention never looks at what follows, so no mask is needed or looked for."""
    from torch.nn.functional import scaled_dot_product_attention as attend

    grouped = query.shape[1] != key.shape[1]
    out = attend(query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped)
    return out.transpose(1, 2)


def _by_row(query: Any, key: Any, value: Any, lengths: tuple[int, ...], scaling: float | None, dropout: float) -> Any:
    """Row by row: on a CPU the calls cost nothing beside the arithmetic, and no padding is computed."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    grouped = query.shape[1] != key.shape[1]
    parts = [
        attend(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def _varlen(query: Any, key: Any, value: Any, limits: Any, longest: int, scaling: float | None, dropout: float) -> Any:
    """The flash kernel for rows of different lengths that torch itself brings."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise NotImplementedError("packed attention on a GPU has no dropout")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    # torch before 2.11 says it in another way.
    windows = "window_size" in inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if windows else {"is_causal": True}
    out = varlen_attn(q, k, v, limits, limits, longest, longest, scale=scaling, **causal)
    return out[None]

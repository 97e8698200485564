"""What quantizers are calibrated with: the rows of a data config, or text that the model itself writes."""

from __future__ import annotations

from typing import Any

from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.tuning.checkpoints import Checkpoints

__all__ = ["OWN_TEXT", "calibration_tokens"]

OWN_TEXT = 256
"""Tokens of a sequence that a model should write itself at most: it writes them one after the other."""
_TOGETHER = 64
"""Sequences that the model writes at once: their keys and values are kept while it does."""


def calibration_tokens(
    pass_name: str,
    network: Any,
    model: Model,
    data: str | None,
    count: int,
    length: int,
    context: PassContext,
    *,
    written: int | None = None,
) -> list[Any]:
    """Return up to `count` tensors (1, n) of token ids, n at most `length` and what the model has places for.

    data: the name of a data config. Without one the model writes the text itself, sampled from its own distribution
    (Williams et al. 2024, arXiv 2410.17170): no foreign text is needed, and the same seed gives the same tokens.
    written: the most tokens of a sequence that the model writes; default: `length`.
    """
    import torch

    length = min(length, getattr(network.config, "max_position_embeddings", None) or length)
    if data is None:
        return _written(network, count, min(length, written or length), context)
    found = []
    for sample in context.data(data, model=model):
        ids = sample.inputs.get("input_ids")
        if ids is None or isinstance(ids, str):
            raise ConfigError(
                f"{pass_name}: sample {sample.id} of {data} has no input_ids; it has {', '.join(sample.inputs)}; "
                "use a data config of text generation"
            )
        mask = sample.inputs.get("attention_mask")
        row = ids if mask is None or isinstance(mask, str) else ids[mask.astype(bool)]
        if len(row) > 1:
            found.append(torch.as_tensor(row[:length], dtype=torch.long, device=network.device)[None])
        if len(found) == count:
            break
    if not found:
        raise ConfigError(f"{pass_name}: {data} has no sample of two tokens or more to calibrate with")
    context.report["calibration"] = {"sequences": len(found), "tokens": sum(t.shape[1] for t in found), "from": data}
    return found


def _written(network: Any, count: int, length: int, context: PassContext) -> list[Any]:
    """Return text of the model's own. What a stopped run of this step wrote is not written again."""
    import torch

    generator = torch.Generator(device="cpu").manual_seed(context.seed)
    rows: list[Any] = []
    kept = Checkpoints(context.checkpoint_dir / f"text-{count}x{length}")
    found = kept.latest()
    if found is not None:
        rows = [row[None].to(network.device) for row in found[1]["rows"]]
        generator.set_state(found[1]["random"])
    with torch.inference_mode():
        for begin in range(len(rows), count, _TOGETHER):
            ids = _first_tokens(network, min(_TOGETHER, count - begin))
            past = None
            for place in range(length - 1):
                done = begin * (length - 1) + place * len(ids)
                context.progress(done, count * (length - 1), "writing calibration text")
                out = network(input_ids=ids[:, -1:], past_key_values=past, use_cache=True)
                past = out.past_key_values
                chances = torch.softmax(out.logits[:, -1].float().cpu(), dim=-1)
                ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator).to(ids.device)], dim=1)
            rows += [row[None].clone() for row in ids]
            kept.save(len(rows), {"rows": torch.cat(rows).cpu(), "random": generator.get_state()})
    context.report["calibration"] = {"sequences": count, "tokens": count * length, "from": "the model's own text"}
    return rows


def _first_tokens(network: Any, count: int) -> Any:
    import torch

    config = network.config
    start = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
    start = start[0] if isinstance(start, list) else start
    return torch.full((count, 1), int(start or 0), dtype=torch.long, device=network.device)

"""Cuts tokens of running text into blocks: a block a row, or rows joined and cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from drupe.plugins.data.accounting import Accounting
from drupe.plugins.data.options import PreProcess

__all__ = ["Block", "joined", "line_by_line"]


@dataclass(frozen=True)
class Block:
    """Tokens of a sample and where loss is taken. text: None where it is what the tokens decode to."""

    id: str
    ids: Sequence[int]
    labels: Sequence[int]
    text: str | None = None
    overlaps: bool = False


def line_by_line(
    texts: Sequence[tuple[str, str, Sequence[int]]], options: PreProcess, seed: int, account: Accounting
) -> list[Block]:
    """Return a block a row, cut at max_seq_len. texts: (row's id, text, tokens).

    The random strategy draws max_samples rows, none twice.
    """
    order = list(range(len(texts)))
    if options.strategy == "line-by-line-random":
        Random(seed).shuffle(order)
    blocks: list[Block] = []
    for index in order:
        if options.max_samples is not None and len(blocks) >= options.max_samples:
            break
        key, text, ids = texts[index]
        if options.drop_short_sequences and len(ids) < options.max_seq_len:
            account.drop(f"shorter than max_seq_len {options.max_seq_len}")
            continue
        if len(ids) < 2:
            # Nothing can be predicted from nothing.
            account.drop("a single token")
            continue
        account.cut_tokens(f"beyond max_seq_len {options.max_seq_len}", len(ids) - options.max_seq_len)
        kept = list(ids[: options.max_seq_len])
        blocks.append(Block(key, kept, kept, text))
    return blocks


def joined(
    texts: Sequence[Sequence[int]], joiner: Sequence[int], options: PreProcess, seed: int, account: Accounting
) -> list[Block]:
    """Return blocks of max_seq_len tokens over the joined rows.

    join: one after the other; the last one may be shorter, and stays unless drop_last. join-sliding-window: a block
    every `stride` tokens; loss is taken on what no earlier block had. join-random: max_samples blocks that start at
    random rows.
    """
    if options.strategy == "join-random":
        return _random_blocks(texts, joiner, options, seed, account)
    stream: list[int] = []
    for index, ids in enumerate(texts):
        stream += (*joiner, *ids) if index else ids
    account.tokens += len(joiner) * max(len(texts) - 1, 0)
    size = options.max_seq_len
    step = options.stride if options.strategy == "join-sliding-window" and options.stride else size
    blocks: list[Block] = []
    seen = 0
    for start in range(0, len(stream), step):
        if seen >= len(stream):
            break
        if options.max_samples is not None and len(blocks) >= options.max_samples:
            account.cut_tokens("beyond max_samples", len(stream) - seen)
            break
        ids = stream[start : start + size]
        if len(ids) < size and (options.drop_last or options.drop_short_sequences):
            account.drop(f"the last block, of {len(ids)} tokens (drop_last)")
            account.cut_tokens("in the last block (drop_last)", len(stream) - seen)
            break
        if len(ids) < 2:
            account.drop("the last block, of a single token")
            break
        known = max(seen - start, 0)
        blocks.append(Block(f"b{len(blocks):07}", ids, [-100] * known + ids[known:], overlaps=step < size))
        seen = start + len(ids)
    return blocks


def _random_blocks(
    texts: Sequence[Sequence[int]], joiner: Sequence[int], options: PreProcess, seed: int, account: Accounting
) -> list[Block]:
    random = Random(seed)
    blocks: list[Block] = []
    for _ in range(options.max_samples or 0):
        for _ in range(options.random_retries):
            ids: list[int] = []
            for index in range(random.randrange(len(texts)) if texts else 0, len(texts)):
                ids += (*joiner, *texts[index]) if ids else texts[index]
                if len(ids) >= options.max_seq_len:
                    break
            if len(ids) >= options.max_seq_len:
                kept = ids[: options.max_seq_len]
                blocks.append(Block(f"b{len(blocks):07}", kept, kept, overlaps=True))
                break
        else:
            account.drop(f"a draw: no row starts {options.max_seq_len} tokens in {options.random_retries} tries")
    return blocks

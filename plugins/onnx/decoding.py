"""Steps of a decoder that takes keys and values and gives them: where they start, how they go on, what they say."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drupe.core.runtimes import GenerateOptions

__all__ = ["PAST", "PRESENT", "USE_CACHE", "decode_steps", "end_tokens", "past_inputs", "past_outputs", "step_inputs"]

USE_CACHE = "use_cache_branch"
"""The input of a merged decoder that says whether there are keys and values already."""
PAST = re.compile(r"past\D*(\d+)\D*(key|value)")
PRESENT = re.compile(r"present\D*(\d+)\D*(key|value)")
"""Names of keys and values that go in and come out; groups: the layer, and which of the two."""

Shapes = Mapping[str, tuple[tuple[int | str, ...], str]]


def past_inputs(shapes: Shapes, batch: int = 1) -> dict[str, np.ndarray]:
    """Return keys and values of no token by input name; {} where the graph takes none, or of fixed length."""
    found = {}
    for name, (shape, dtype) in shapes.items():
        if PAST.search(name) and len(shape) == 4 and isinstance(shape[2], str):
            sizes = [batch if axis == 0 and isinstance(size, str) else size for axis, size in enumerate(shape)]
            sizes[2] = 0
            if all(isinstance(size, int) for size in sizes):
                found[name] = np.zeros([int(size) for size in sizes], dtype)
    return found


def past_outputs(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Return which output is which input of the next step."""
    given = {match.groups(): name for name in outputs if (match := PRESENT.search(name))}
    pairs = {name: given.get(match.groups()) for name in inputs if (match := PAST.search(name))}
    return {name: output for name, output in pairs.items() if output is not None}


def step_inputs(ids: np.ndarray, past: int) -> dict[str, np.ndarray]:
    """Return what a step may take beside keys and values. ids: int64 (n,), the new tokens; past: how many before."""
    return {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, past + len(ids)), dtype=np.int64),
        "position_ids": np.arange(past, past + len(ids), dtype=np.int64)[None],
        USE_CACHE: np.array([past > 0]),
    }


def decode_steps(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    shapes: Shapes,
    outputs: Sequence[str],
    ids: np.ndarray,
    options: GenerateOptions,
    is_end: Callable[[Sequence[int]], bool],
) -> tuple[list[int], list[float]]:
    """Return the tokens that follow `ids` (int64, (n,)) and the seconds from the call to each.

    run: one call of the graph, arrays by input name to arrays by output name. is_end: whether the answer so far ends.
    """
    kept: dict[str, np.ndarray] = past_inputs(shapes)
    following = past_outputs(list(kept), outputs)
    random = np.random.default_rng(options.seed)
    tokens: list[int] = []
    seconds: list[float] = []
    started = time.perf_counter()
    step, past = ids, 0
    while len(tokens) < options.max_new_tokens:
        given = step_inputs(step, past)
        result = run({**{name: given[name] for name in shapes if name in given}, **kept})
        token = _pick(result["logits"][0, -1].astype(np.float64), options, random)
        tokens.append(token)
        seconds.append(time.perf_counter() - started)
        if is_end(tokens):
            break
        kept = {name: result[output] for name, output in following.items()}
        past += len(step)
        step = np.array([token], dtype=np.int64)
    return tokens, seconds


def end_tokens(folder: Path, number: Callable[[str], int | None]) -> frozenset[int]:
    """Return the tokens that end a text, as the files beside a graph tell. number: a special token's number."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        told = _json(folder / name).get("eos_token_id")
        if told is not None:
            found.update([told] if isinstance(told, int) else told)
            break
    token = _json(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    own = number(str(text)) if text else None
    return frozenset(found if own is None else {*found, own})


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    return data if isinstance(data, dict) else {}


def _pick(logits: np.ndarray, options: GenerateOptions, random: np.random.Generator) -> int:
    if options.temperature <= 0:
        return int(np.argmax(logits))
    scaled = logits / options.temperature
    chances = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    if options.top_p < 1:
        order = np.argsort(-chances, kind="stable")
        beyond = np.cumsum(chances[order]) - chances[order] > options.top_p
        chances[order[beyond]] = 0.0
        chances /= chances.sum()
    return int(random.choice(len(chances), p=chances))

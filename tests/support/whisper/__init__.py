"""A tiny Whisper with random weights, a script that cuts it into the graphs of a beam search, and audio for it."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = Path(__file__).with_name("parts.py")
"""The user's script: functions as they are named in COMPONENTS."""
COMPONENTS = [
    {
        "name": "encoder_decoder_init",
        "io_config": "first_io",
        "component_func": "first_part",
        "dummy_inputs_func": "first_inputs",
    },
    {
        "name": "decoder",
        "io_config": "later_io",
        "component_func": "later_part",
        "dummy_inputs_func": "later_inputs",
    },
]
RATE, SECONDS = 16_000, 3
START, END = 257, 256
"""Ids of <|startoftranscript|> and <|endoftext|>; below are the 256 bytes."""
LETTERS = range(33, 95)
"""Ids of printable ASCII characters: a text of others may be no text."""
_SPECIAL = ("startoftranscript", "translate", "transcribe", "startoflm", "notimestamps", "0.00")


def tiny_whisper(folder: Path) -> Path:
    """Write a Whisper of one encoder and two decoder layers for three seconds of audio, its processor beside it."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    vocabulary = {sign: index for index, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    end = "<|endoftext|>"
    vocabulary[end] = END
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], unk_token=end, bos_token=end, eos_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in _SPECIAL]})
    features = WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS)
    WhisperProcessor(features, tokenizer).save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=264, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50 * SECONDS,
        max_target_positions=64, pad_token_id=END, eos_token_id=END, bos_token_id=END, decoder_start_token_id=START,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for weights in model.parameters():
            # As they start, such weights make logits that hardly differ.
            weights.mul_(8 if weights.ndim > 1 else 1)
    model.save_pretrained(folder)
    return folder


def tone() -> np.ndarray:
    """Return three seconds of tones that change, and noise: int16 at 16 kHz."""
    time = np.arange(RATE * SECONDS) / RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    signal = 0.4 * np.sin(2 * np.pi * 300 * time**2) + 0.02 * noise
    return (signal * 32767).astype(np.int16)


def wav(samples: np.ndarray) -> np.ndarray:
    """Return the bytes of a WAV file, uint8 (1, n)."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(samples.tobytes())
    return np.frombuffer(file.getvalue(), np.uint8)[None]


def search(beams: int, length: int = 20, **more: Any) -> dict[str, np.ndarray]:
    """Return the inputs of a beam search beside the features."""
    whole = {"max_length": length, "min_length": 0, "num_beams": beams, "num_return_sequences": 1}
    floats = {"length_penalty": 1.0, "repetition_penalty": 1.0}
    return {
        **{name: np.array([value], np.int32) for name, value in whole.items()},
        **{name: np.array([value], np.float32) for name, value in floats.items()},
        **more,
    }


def only(ids: range) -> np.ndarray:
    """Return a vocab_mask that allows these tokens."""
    return np.isin(np.arange(264), list(ids)).astype(np.int32)


def generated(folder: Path, features: np.ndarray, beams: int, length: int = 20, **more: Any) -> np.ndarray:
    """Return what transformers generates, padded to a length."""
    import torch
    from transformers import GenerationMixin, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder)
    given = {"decoder_input_ids": torch.full((len(features), 1), START), **more}
    # Whisper's own method adds rules of its decoding that are no part of the search.
    found = GenerationMixin.generate(
        model, torch.from_numpy(features), num_beams=beams, max_length=length, early_stopping=True, do_sample=False,
        **given,
    ).numpy()  # fmt: skip
    return np.pad(found, ((0, 0), (0, length - found.shape[1])), constant_values=END)

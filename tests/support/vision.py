"""Small vision models trained on scikit-learn's digits in seconds, as Hugging Face folders, and pictures for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HELD_OUT = 297
"""How many of the 1,797 digits no model here is trained on: the last ones."""


def digits(size: int = 8, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return all pictures, float32 (n, channels, size, size) from -1 to 1, and their classes.

    size: a multiple of 8; each pixel becomes a square.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = (found.images / 8.0 - 1.0).astype(np.float32)
    pictures = np.kron(pictures, np.ones((size // 8, size // 8), np.float32))
    return np.repeat(pictures[:, None], channels, axis=1), found.target.astype(np.int64)


def trained_vit(folder: Path, *, width: int = 64, layers: int = 2, epochs: int = 8) -> Path:
    """Write a ViT of 8 × 8 grey pictures, trained on the digits that are not held out; right on 8 of 10 others."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=layers, num_attention_heads=4, num_labels=10, hidden_dropout_prob=0.0,
    )  # fmt: skip
    _save(_trained(ViTForImageClassification, config, digits(), epochs), folder, 8, 1)
    return folder


def trained_resnet(folder: Path, *, size: int = 32, epochs: int = 5) -> Path:
    """Write a ResNet of four stages of size × size RGB pictures, trained likewise."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic", num_labels=10
    )
    _save(_trained(ResNetForImageClassification, config, digits(size, 3), epochs), folder, size, 3)
    return folder


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = sorted(set("".join(WORDS)))
"""What a reader writes: a token each, after the padding (0) and the end (1)."""


def strokes(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (n, 1, 8, 8) as rows of tokens, one for each pixel that is not empty, and their mask; int32."""
    levels = np.clip(((pictures.reshape(len(pictures), 64) + 1.0) * 2).astype(np.int32), 0, 3)
    first = 2 + len(LETTERS)
    rows = [first + 3 * np.flatnonzero(row) + row[row > 0] - 1 for row in levels]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids, (ids != 0).astype(np.int32)


def words(ids: np.ndarray) -> list[str]:
    """Return what rows of a reader's tokens say."""
    return ["".join(LETTERS[token - 2] for token in row if token > 1) for row in ids]


def trained_reader(folder: Path, *, epochs: int = 10) -> Path:
    """Write a small T5 that spells the digit in a picture: strokes in, letters out; trained on those not held out."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=2 + len(LETTERS) + 3 * 64, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_decoder_layers=1,
        num_heads=4, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).train()
    pictures, classes = (part[:-HELD_OUT] for part in digits())
    ids, mask = (torch.from_numpy(part).long() for part in strokes(pictures))
    spelled = [[2 + LETTERS.index(letter) for letter in WORDS[c]] + [1] for c in classes]
    labels = torch.tensor([row + [-100] * (6 - len(row)) for row in spelled])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(ids)).split(50):
            loss = model(input_ids=ids[chosen], attention_mask=mask[chosen], labels=labels[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval().save_pretrained(folder)
    return folder


def save_pictures(folder: Path, start: int, count: int, size: int = 8) -> Path:
    """Write held-out digits as an image folder: a sub-folder per class."""
    from PIL import Image

    pictures, classes = digits(size)
    first = len(pictures) - HELD_OUT + start
    for index in range(first, first + count):
        target = folder / str(classes[index])
        target.mkdir(parents=True, exist_ok=True)
        levels = np.rint((pictures[index, 0] + 1.0) * 127.5).astype(np.uint8)
        Image.fromarray(levels).save(target / f"{index:04}.png")
    return folder


def _trained(kind: Any, config: Any, data: tuple[np.ndarray, np.ndarray], epochs: int) -> Any:
    import torch

    torch.manual_seed(0)
    model = kind(config).train()
    pictures, classes = (torch.from_numpy(part[:-HELD_OUT]) for part in data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * -(-len(pictures) // 50))
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures)).split(50):
            loss = model(pixel_values=pictures[chosen], labels=classes[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _save(model: Any, folder: Path, size: int, channels: int) -> None:
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * channels,
        "image_std": [0.5] * channels,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))

"""The same parts as in parts.py for a model that takes text."""

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache


def tensors(cache):
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


class First(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, ids, mask, start):
        out = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=True)
        own, cross = out.past_key_values.self_attention_cache, out.past_key_values.cross_attention_cache
        return out.logits, out.encoder_last_hidden_state, tensors(own), tensors(cross)


class Later(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, ids, mask, *past):
        half = len(past) // 2
        own = DynamicCache(tuple(zip(past[:half:2], past[1:half:2], strict=True)))
        cross = DynamicCache(tuple(zip(past[half::2], past[half + 1 :: 2], strict=True)))
        batch, _, length, _ = past[half].shape
        hidden = past[half].new_zeros(batch, length, self.config.d_model)
        out = self.model(
            encoder_outputs=(hidden,), attention_mask=mask, decoder_input_ids=ids,
            past_key_values=EncoderDecoderCache(own, cross), use_cache=True,
        )  # fmt: skip
        return out.logits, tensors(out.past_key_values.self_attention_cache)


def first_part(model):
    return First(model.load_model())


def later_part(model):
    return Later(model.load_model())


def names(config, what, part):
    return [f"{what}_{kind}_{part}_{layer}" for layer in range(config.num_decoder_layers) for kind in ("key", "value")]


def first_io(model):
    config = model.load_model().config
    own, cross = names(config, "present", "self"), names(config, "present", "cross")
    return {
        "input_names": ["encoder_input_ids", "encoder_attention_mask", "decoder_input_ids"],
        "output_names": ["logits", "encoder_hidden_states", *own, *cross],
        "dynamic_axes": {
            **{name: {0: "batch", 1: "source"} for name in ("encoder_input_ids", "encoder_attention_mask")},
            "encoder_hidden_states": {0: "batch", 1: "source"},
            **{name: {0: "batch"} for name in ("decoder_input_ids", "logits", *own)},
            **{name: {0: "batch", 2: "source"} for name in cross},
        },
    }


def later_io(model):
    config = model.load_model().config
    own, cross = names(config, "past", "self"), names(config, "past", "cross")
    present = names(config, "present", "self")
    return {
        "input_names": ["input_ids", "encoder_attention_mask", *own, *cross],
        "output_names": ["logits", *present],
        "dynamic_axes": {
            "encoder_attention_mask": {0: "batch", 1: "source"},
            **{name: {0: "batch"} for name in ("input_ids", "logits")},
            **{name: {0: "batch", 2: "past"} for name in own},
            **{name: {0: "batch", 2: "source"} for name in cross},
            **{name: {0: "batch", 2: "past + 1"} for name in present},
        },
    }


def first_inputs(model):
    ids = torch.randint(2, 50, (2, 7), dtype=torch.int32)
    return ids, torch.ones_like(ids), torch.zeros(2, 1, dtype=torch.int32)


def later_inputs(model):
    config = model.config
    own = [torch.rand(2, config.num_heads, 3, config.d_kv) for _ in range(2 * config.num_decoder_layers)]
    cross = [torch.rand(2, config.num_heads, 7, config.d_kv) for _ in range(2 * config.num_decoder_layers)]
    return torch.ones(2, 1, dtype=torch.int32), torch.ones(2, 7, dtype=torch.int32), *own, *cross

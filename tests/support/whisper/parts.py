"""What a user's script for a model in parts looks like; functions take what Olive's and Drupe's give them."""

import torch
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache


def tensors(cache):
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


class First(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.encoder, self.decoder, self.head = model.get_encoder(), model.get_decoder(), model.proj_out
        self.config = model.config

    def forward(self, features, ids):
        hidden = self.encoder(features).last_hidden_state
        out = self.decoder(input_ids=ids, encoder_hidden_states=hidden, use_cache=True)
        own, cross = out.past_key_values.self_attention_cache, out.past_key_values.cross_attention_cache
        return self.head(out.last_hidden_state), hidden, tensors(own), tensors(cross)


class Later(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.decoder, self.head = model.get_decoder(), model.proj_out
        self.config = model.config

    def forward(self, ids, *past):
        half = len(past) // 2
        own = DynamicCache(tuple(zip(past[:half:2], past[1:half:2], strict=True)))
        cross = DynamicCache(tuple(zip(past[half::2], past[half + 1 :: 2], strict=True)))
        # What the encoder gave lies in the cache; but a layer that is given nothing leaves cross attention out.
        hidden = past[half].flatten(2)
        out = self.decoder(
            input_ids=ids, encoder_hidden_states=hidden, past_key_values=EncoderDecoderCache(own, cross), use_cache=True
        )
        return self.head(out.last_hidden_state), tensors(out.past_key_values.self_attention_cache)


def first_part(model_path):
    return First(WhisperForConditionalGeneration.from_pretrained(model_path, attn_implementation="eager"))


def later_part(olive_model):
    return Later(olive_model.load_model())


def names(config, what, part):
    return [f"{what}_{kind}_{part}_{layer}" for layer in range(config.decoder_layers) for kind in ("key", "value")]


def first_io(olive_model):
    config = olive_model.load_model().config
    heads, size = str(config.decoder_attention_heads), str(config.d_model // config.decoder_attention_heads)
    present = names(config, "present", "self") + names(config, "present", "cross")
    return {
        "input_names": ["encoder_input_ids", "decoder_input_ids"],
        "output_names": ["logits", "encoder_hidden_states", *present],
        "dynamic_axes": {
            "encoder_input_ids": {0: "batch"},
            "decoder_input_ids": {0: "batch", 1: "length"},
            "logits": {0: "batch", 1: "length"},
            "encoder_hidden_states": {0: "batch"},
            **{name: {0: "batch", 1: heads, 2: "frames" if "cross" in name else "length", 3: size} for name in present},
        },
        "string_to_int_dim_params": [heads, size],
    }


def later_io(olive_model):
    config = olive_model.load_model().config
    past = names(config, "past", "self") + names(config, "past", "cross")
    present = names(config, "present", "self")
    return {
        "input_names": ["input_ids", *past],
        "output_names": ["logits", *present],
        "dynamic_axes": {
            "input_ids": {0: "batch"},
            "logits": {0: "batch"},
            **{name: {0: "batch", 2: "past"} if "self" in name else {0: "batch"} for name in past},
            **{name: {0: "batch", 2: "past + 1"} for name in present},
        },
    }


def first_inputs(model):
    config = model.load_model().config
    features = torch.rand(2, config.num_mel_bins, 2 * config.max_source_positions)
    return features, torch.full((2, 2), config.decoder_start_token_id, dtype=torch.int32)


def later_inputs(model):
    config = model.config
    heads, size = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    own = [torch.rand(2, heads, 5, size) for _ in range(2 * config.decoder_layers)]
    cross = [torch.rand(2, heads, config.max_source_positions, size) for _ in range(2 * config.decoder_layers)]
    return torch.ones(2, 1, dtype=torch.int32), *own, *cross

"""Tiny models of many architectures with random weights, and inputs for them as real data give them: padded batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drupe.testing import byte_tokenizer

__all__ = ["ARCHITECTURES", "Architecture", "batches", "write"]

VOCABULARY = 264
_IDS = {"pad_token_id": 258, "bos_token_id": 256, "eos_token_id": 257}
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_SMALL_CONVOLUTIONS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": [16] * 3, "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 32, "classifier_proj_size": 16,
    "feat_proj_dropout": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """model: a class of transformers; config: its config's fields; kind: decoder, encoder, seq2seq, speech, vision,
    audio or pair; task: what a user has to say in the workflow, None where the architecture should tell;
    outputs: those of io_config."""

    model: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    make_config: Callable[[], Any] | None = None
    outputs: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The class's name without what it is for."""
        for ending in ("LMHeadModel", "MTModel", "Model", "For"):
            if (name := self.model.split(ending)[0]) != self.model:
                return name
        return self.model


def _decoder(model: str, **config: Any) -> Architecture:
    return Architecture(model, "decoder", {**_GROUPED, **_IDS, **config})


def _encoder(model: str, **config: Any) -> Architecture:
    return Architecture(model, "encoder", {**_SIZES, "pad_token_id": 0, "num_labels": 3, **config})


def _gpt2() -> Architecture:
    own = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": VOCABULARY, **_IDS}
    return Architecture("GPT2LMHeadModel", "decoder", own)


def _moe(model: str, **config: Any) -> Architecture:
    return _decoder(model, num_experts_per_tok=2, moe_intermediate_size=64, **config)


def _clip() -> Any:
    from transformers import CLIPConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPConfig(
        text_config={**shape, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "eos_token_id": 257},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )


def _siglip() -> Any:
    from transformers import SiglipConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return SiglipConfig(
        text_config={**shape, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "projection_size": 32},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
    )


def _detr() -> Any:
    from transformers import DetrConfig, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    return DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, backbone=None, use_pretrained_backbone=False,
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=5, num_labels=4,
    )  # fmt: skip


def _sam() -> Any:
    from transformers import SamConfig

    small = {"hidden_size": 16, "image_size": 32, "patch_size": 8}
    return SamConfig(
        vision_config={
            **small, "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "mlp_dim": 48, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8,
        },
        prompt_encoder_config={
            **small, "mask_input_channels": 4, "num_point_embeddings": 4, "image_embedding_size": 4,
        },
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip


_SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 256,
    "forced_eos_token_id": 257, "decoder_start_token_id": 258, **_IDS,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "pad_token_id": 258, "eos_token_id": 257, "decoder_start_token_id": 258,
}  # fmt: skip
_VIT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "num_labels": 3,
}  # fmt: skip

_RECURRENT = {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, **_IDS}
_SQUEEZED = {**_SMALL_CONVOLUTIONS, "squeeze_factor": 2}

_EMBEDDED = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")

_LIST = [
    _decoder("LlamaForCausalLM"),
    _decoder("MistralForCausalLM", sliding_window=8),
    _decoder("Qwen2ForCausalLM", tie_word_embeddings=True),
    _decoder("Qwen3ForCausalLM", head_dim=16),
    _decoder("Gemma2ForCausalLM", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    _decoder("Gemma3ForCausalLM", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    _decoder("PhiForCausalLM", hidden_size=128, num_key_value_heads=4),
    _decoder("Phi3ForCausalLM", sliding_window=8, original_max_position_embeddings=256),
    _gpt2(),
    _decoder("GPTNeoXForCausalLM"),
    Architecture(
        "OPTForCausalLM", "decoder",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 256, "word_embed_proj_dim": 64, **_IDS},
    ),
    Architecture(
        "BloomForCausalLM", "decoder",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, **_IDS},
    ),
    _decoder("FalconForCausalLM", multi_query=True, parallel_attn=True, bias=False, alibi=False),
    _decoder("StableLmForCausalLM", use_qkv_bias=True, hidden_size=128),
    _decoder("OlmoForCausalLM"),
    _decoder("Olmo2ForCausalLM"),
    _decoder(
        "GraniteForCausalLM", embedding_multiplier=12.0, attention_multiplier=0.1, residual_multiplier=0.22,
        logits_scaling=8.0,
    ),
    _decoder("SmolLM3ForCausalLM", no_rope_layers=[1, 0]),
    _decoder("Starcoder2ForCausalLM", sliding_window=None),
    _decoder("GptOssForCausalLM", head_dim=16, sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
    _decoder(
        "DeepseekV3ForCausalLM", num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
        moe_intermediate_size=32, first_k_dense_replace=1, n_shared_experts=1,
    ),
    _decoder("Lfm2ForCausalLM", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    _decoder(
        "Qwen3NextForCausalLM", layer_types=["linear_attention", "full_attention"], head_dim=16, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    ),
    _decoder(
        "JambaForCausalLM", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=2, num_experts_per_tok=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    Architecture("MambaForCausalLM", "decoder", _RECURRENT),
    Architecture("Mamba2ForCausalLM", "decoder", {**_RECURRENT, "num_heads": 4, "head_dim": 16, "chunk_size": 16}),
    _moe("MixtralForCausalLM", num_local_experts=4),
    _moe("Qwen3MoeForCausalLM", num_experts=4, head_dim=16),
    _encoder("BertForSequenceClassification"),
    _encoder("BertModel"),
    _encoder("BertForMaskedLM"),
    _encoder("BertForQuestionAnswering", num_labels=2),
    _encoder("RobertaForSequenceClassification", pad_token_id=1),
    _encoder("RobertaForTokenClassification", pad_token_id=1),
    _encoder("XLMRobertaModel", pad_token_id=1),
    Architecture(
        "DistilBertForSequenceClassification", "encoder",
        {"vocab_size": VOCABULARY, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "num_labels": 3,
         "max_position_embeddings": 256},
    ),
    _encoder(
        "DebertaV2ForSequenceClassification", relative_attention=True, pos_att_type=["p2c", "c2p"],
        position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False,
        type_vocab_size=0,
    ),
    _encoder("ElectraForSequenceClassification", embedding_size=32),
    _encoder(
        "ModernBertForSequenceClassification", local_attention=8, cls_token_id=1, sep_token_id=2, bos_token_id=1,
        eos_token_id=2, global_attn_every_n_layers=2,
    ),
    _encoder("MPNetModel", pad_token_id=1),
    _encoder("AlbertForSequenceClassification", embedding_size=32),
    Architecture("T5ForConditionalGeneration", "seq2seq", _T5),
    Architecture("BartForConditionalGeneration", "seq2seq", _SEQ2SEQ),
    Architecture("MarianMTModel", "seq2seq", _SEQ2SEQ),
    Architecture("BartForSequenceClassification", "encoder", {**_SEQ2SEQ, "num_labels": 3}),
    Architecture(
        "WhisperForConditionalGeneration", "speech",
        {**_SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 64,
         "begin_suppress_tokens": None, "suppress_tokens": None},
    ),
    Architecture("ViTForImageClassification", "vision", _VIT),
    Architecture("DeiTForImageClassification", "vision", _VIT),
    Architecture(
        "SwinForImageClassification", "vision",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
         "num_labels": 3},
    ),
    Architecture(
        "ConvNextForImageClassification", "vision",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 32, "num_labels": 3},
    ),
    Architecture(
        "ResNetForImageClassification", "vision",
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 3},
    ),
    Architecture(
        "MobileNetV2ForImageClassification", "vision", {"image_size": 32, "num_labels": 3, "depth_multiplier": 0.35}
    ),
    Architecture("Dinov2Model", "vision", _VIT),
    Architecture("DetrForObjectDetection", "vision", make_config=_detr),
    Architecture(
        "YolosForObjectDetection", "vision",
        {**_VIT, "image_size": [32, 32], "num_detection_tokens": 5, "num_labels": 4},
    ),
    Architecture("SamModel", "vision", make_config=_sam, outputs=("iou_scores", "pred_masks")),
    Architecture(
        "SegformerForSemanticSegmentation", "vision",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2],
         "decoder_hidden_size": 16, "num_labels": 3},
    ),
    Architecture("CLIPModel", "pair", make_config=_clip, outputs=_EMBEDDED),
    Architecture("SiglipModel", "pair", make_config=_siglip, outputs=_EMBEDDED),
    Architecture("Wav2Vec2ForCTC", "audio", _SMALL_CONVOLUTIONS),
    Architecture("Wav2Vec2ForSequenceClassification", "audio", {**_SMALL_CONVOLUTIONS, "num_labels": 3}),
    Architecture("HubertForCTC", "audio", _SMALL_CONVOLUTIONS),
    Architecture("WavLMForCTC", "audio", {**_SMALL_CONVOLUTIONS, "num_buckets": 16, "max_bucket_distance": 40}),
    Architecture("SEWForCTC", "audio", _SQUEEZED),
    Architecture(
        "SEWDForCTC", "audio",
        {**_SQUEEZED, "max_position_embeddings": 64, "position_buckets": 16, "attention_head_size": 16},
    ),
]  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {entry.model: entry for entry in _LIST}


def write(architecture: Architecture, folder: Path) -> Any:
    """Write a model's folder as the hub has them, and return the loaded network.

    Values are spread so that every part matters: attention, masks, biases and the gains of norms.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, architecture.model)
    config = architecture.make_config() if architecture.make_config else kind.config_class(**architecture.config)
    config.architectures = [architecture.model]
    network = kind(config).eval()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "embed" in name.lower() or "wte" in name:
            parameter.data.normal_(0, 0.5)
        else:
            parameter.data.normal_(0, 1.0 / float(np.sqrt(max(2, parameter[0].numel()))))
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    network.save_pretrained(folder)
    if architecture.kind in ("decoder", "encoder", "seq2seq"):
        byte_tokenizer().save_pretrained(folder)
    if architecture.kind == "vision":
        size = {"height": 32, "width": 32}
        told = {"image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True}
        (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return network


def batches(architecture: Architecture, names: set[str] | None = None) -> list[dict[str, np.ndarray]]:
    """Return batches of several sizes and lengths, rows padded on the right."""
    random = np.random.default_rng(0)
    kind = architecture.kind
    if kind == "vision":
        return [{"pixel_values": random.random((n, 3, 32, 32), np.float32) * 2 - 1} for n in (1, 3)]
    if kind == "audio":
        return [
            {"input_values": random.normal(size=(n, length)).astype(np.float32)} for n, length in ((1, 800), (3, 1203))
        ]
    found = []
    for rows, length in ((1, 6), (3, 13), (2, 40)):
        batch = _texts(random, rows, length, architecture)
        if kind == "pair":
            batch["pixel_values"] = random.random((rows, 3, 32, 32), np.float32)
        if kind == "seq2seq":
            batch["decoder_input_ids"] = random.integers(4, 250, (rows, max(2, length // 3)))
        if kind == "speech":
            batch = {
                "input_features": random.normal(size=(rows, 16, 100)).astype(np.float32),
                "decoder_input_ids": random.integers(4, 250, (rows, length)),
            }
        found.append(batch)
    return found


def _texts(random: Any, rows: int, length: int, architecture: Architecture) -> dict[str, np.ndarray]:
    ids = random.integers(4, 250, (rows, length))
    mask = np.ones_like(ids)
    config = architecture.config
    pad, end = config.get("pad_token_id", 0), config.get("eos_token_id")
    for row in range(1, rows):
        real = length - row * length // 4
        mask[row, real:], ids[row, real:] = 0, pad
    if architecture.model == "CLIPModel" or architecture.model.startswith("BartForSeq"):
        for row in range(rows):
            ids[row, mask[row].sum() - 1] = end if end is not None else 257
    return {"input_ids": ids, "attention_mask": mask}

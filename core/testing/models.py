"""Tiny models made on the spot: architectures of the real ones, random weights, no downloads.

Each function writes into a folder and returns the Model that its files make. The same call gives the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drupe.core.model import Model

__all__ = ["byte_tokenizer", "tiny_causal_lm", "tiny_encoder", "tiny_onnx_cnn", "tiny_onnx_mlp"]


def tiny_causal_lm(folder: Path, *, seed: int = 0, **config: Any) -> Model:
    """A Llama of two layers (hf, float32, 0.3 MB) with a byte-level tokenizer and a chat template.

    Every byte is a token; <s>, </s> and <pad> are 256, 257 and 258. config: fields of LlamaConfig to change.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    byte_tokenizer().save_pretrained(folder)
    values = {
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**{**values, **config})).save_pretrained(folder)
    attributes = {"task": "text-generation", "architecture": "LlamaForCausalLM", "dtype": "float32"}
    return Model.from_dir("hf", folder, attributes)


def byte_tokenizer() -> Any:
    """Return a transformers tokenizer of 259 tokens, one a byte, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for special in ("<s>", "</s>", "<pad>"):
        vocabulary[special] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return tokenizer


def tiny_encoder(folder: Path, *, labels: int = 2, seed: int = 0) -> Model:
    """A BERT of two layers that classifies texts (hf, float32, 0.2 MB), with a WordPiece tokenizer of ASCII."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(33, 127)]
    vocabulary = {word: i for i, word in enumerate([*words, *characters, *(f"##{c}" for c in characters)])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        num_labels=labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(folder)
    attributes = {"task": "text-classification", "architecture": "BertForSequenceClassification", "dtype": "float32"}
    return Model.from_dir("hf", folder, attributes)


def tiny_onnx_mlp(folder: Path, *, features: int = 8, hidden: int = 16, classes: int = 3, seed: int = 0) -> Model:
    """Two layers with a Relu between (onnx, 1 kB): "x" float32 (batch, features) → "logits" (batch, classes)."""
    from onnx import TensorProto, helper

    weights = _weights(seed, w1=(features, hidden), b1=(hidden,), w2=(hidden, classes), b2=(classes,))
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"], name="second"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", features])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    return _saved(folder, helper.make_graph(nodes, "mlp", [x], [logits], weights))


def tiny_onnx_cnn(folder: Path, *, size: int = 8, classes: int = 3, seed: int = 0) -> Model:
    """A convolution, a mean over the image and a layer (onnx, 1 kB).

    "image" float32 (batch, 3, size, size) → "logits" (batch, classes).
    """
    from onnx import TensorProto, helper

    weights = _weights(seed, kernel=(4, 3, 3, 3), bias=(4,), w=(4, classes), b=(classes,))
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"], name="head"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    return _saved(folder, helper.make_graph(nodes, "cnn", [image], [logits], weights))


def _weights(seed: int, **shapes: tuple[int, ...]) -> list[Any]:
    import numpy as np
    from onnx import numpy_helper

    random = np.random.default_rng(seed)
    return [
        numpy_helper.from_array(random.normal(0, 0.5, shape).astype(np.float32), name) for name, shape in shapes.items()
    ]


def _saved(folder: Path, graph: Any) -> Model:
    import onnx
    from onnx import helper

    # Opset 17 and IR 8: every runtime of the last years opens them.
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "model.onnx")
    return Model.from_dir("onnx", folder, {"onnx_file": "model.onnx"})

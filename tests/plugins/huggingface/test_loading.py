"""Loading hf models from their folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.huggingface.loading import (
    auto_class_name,
    infer_task,
    load_config,
    load_model,
    load_tokenizer,
    torch_dtype,
)


def test_a_causal_model_loads_with_its_tokenizer(tiny_llama_dir: Path) -> None:
    model = Model("hf", {}, {"task": "text-generation"}, path=tiny_llama_dir)
    loaded = load_model(model)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert not loaded.training
    tokenizer = load_tokenizer(model)
    ids = tokenizer("Grüße, 你好", return_tensors="pt")
    assert tokenizer.decode(ids["input_ids"][0]) == "Grüße, 你好"
    assert loaded(**ids).logits.shape == (1, len("Grüße, 你好".encode()), 264)


def test_the_task_follows_from_the_architecture_where_none_is_given(tiny_bert_dir: Path) -> None:
    model = Model("hf", {}, {}, path=tiny_bert_dir)
    assert type(load_model(model)).__name__ == "BertForSequenceClassification"
    features = Model("hf", {}, {"task": "feature-extraction"}, path=tiny_bert_dir)
    assert type(load_model(features)).__name__ == "BertModel"


def test_dtype_is_the_callers_then_the_input_models_then_the_files(tiny_llama_dir: Path) -> None:
    stored = Model("hf", {}, {"load_kwargs": {"dtype": "bfloat16"}}, path=tiny_llama_dir)
    assert str(load_model(stored).dtype) == "torch.bfloat16"
    assert str(load_model(stored, dtype="float16").dtype) == "torch.float16"
    assert str(load_model(Model("hf", {}, {}, path=tiny_llama_dir)).dtype) == "torch.float32"


def test_an_adapter_is_put_on_and_can_be_left_off(tiny_llama_dir: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama_dir, folder)
    base = load_model(Model("hf", {}, {}, path=folder))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    model = Model("hf", {}, {"adapter": "adapter"}, path=folder)
    ids = torch.tensor([[65, 66, 67]])
    plain = load_model(model, with_adapter=False)(input_ids=ids).logits
    tuned = load_model(model)(input_ids=ids).logits
    assert not torch.allclose(plain, tuned)
    trainable = [name for name, p in load_model(model, trainable=True).named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_a_model_without_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer files.*tokenizer\.json"):
        load_tokenizer(Model("hf", {}, {}, path=tmp_path))


def test_config_tells_the_shape(tiny_llama_dir: Path) -> None:
    assert load_config(Model("hf", {}, {}, path=tiny_llama_dir)).hidden_size == 64


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("BertForTokenClassification", "token-classification"),
        ("BertModel", "feature-extraction"),
        ("MarianMTModel", "text2text-generation"),
        ("MBartForConditionalGeneration", "text2text-generation"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("HubertForSequenceClassification", "audio-classification"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("SegformerForSemanticSegmentation", "image-segmentation"),
        (None, "feature-extraction"),
    ],
)
def test_tasks_of_architectures(architecture: str | None, task: str) -> None:
    assert infer_task(architecture) == task


def test_unknown_task_and_dtype_are_named() -> None:
    assert auto_class_name("ner") == "AutoModelForTokenClassification"
    assert auto_class_name("automatic-speech-recognition") == "AutoModelForSpeechSeq2Seq"
    assert auto_class_name("automatic-speech-recognition", "Wav2Vec2ForCTC") == "AutoModelForCTC"
    with pytest.raises(ConfigError, match=r"unknown task 'text-generaton'.*text-generation"):
        auto_class_name("text-generaton")
    with pytest.raises(ConfigError, match="unknown dtype 'float12'"):
        torch_dtype("float12")

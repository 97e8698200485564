"""Sub-types of a metric whose values are named by others: a script, a workflow, the tasks of a harness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from drupe.core.metrics import SubType

__all__ = ["EveryName"]


class EveryName(Mapping[str, SubType]):
    """Every name is a sub-type; none is listed. meant: what a name stands for."""

    def __init__(self, meant: Callable[[str], SubType]) -> None:
        self._meant = meant

    def __getitem__(self, name: str) -> SubType:
        return self._meant(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

"""GraphSurgeries: named changes to a graph, one after another; surgeons come from plugins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError, field_validator

from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import PassError
from drupe.core.model import Model
from drupe.plugins.onnx.graph_pass import GraphPass, GraphPassConfig
from drupe.plugins.onnx.idle import tell_idle

__all__ = ["GraphSurgeries", "GraphSurgeriesConfig"]


class GraphSurgeriesConfig(GraphPassConfig):
    """What is done, in order."""

    surgeries: list[dict[str, Any]] = Field(
        min_length=1, description="Entries with a `surgeon` and its parameters, applied in order."
    )
    remove_duplicate_initializers: bool = Field(
        False, description="Afterwards keep one of several equal initializers of the graph."
    )

    @field_validator("surgeries", mode="after")
    @classmethod
    def _known(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Complete each entry with its surgeon's defaults; faults name the entry."""
        return [_checked(f"surgeries[{index}]", entry) for index, entry in enumerate(value)]


def _checked(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    from drupe.core.registry import get_registry

    registry = get_registry()
    name = entry.get("surgeon")
    if not isinstance(name, str):
        raise ValueError(f"{where} has no surgeon; expected {{'surgeon': NAME, …}}")
    found = registry.find("drupe_surgeons", name)
    if found is None:
        import difflib

        names = sorted(other.spec.name for other in registry.of("drupe_surgeons"))
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"{where}: no plugin provides a surgeon {name!r}; {hint}")
    given = {key: value for key, value in entry.items() if key != "surgeon"}
    try:
        config = registry.resolve(found).Config.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'parameters'}: {fault['msg']}" for fault in error.errors()
        )
        raise ValueError(f"{where} ({found.spec.name}): {faults}") from None
    return {"surgeon": found.spec.name, **config.model_dump(mode="json")}


class GraphSurgeries(GraphPass):
    """Applies surgeons to the graph. The places that each changed are counted; one that found none is told."""

    Config: ClassVar[type[PassConfig]] = GraphSurgeriesConfig
    replaces_operators: ClassVar[bool] = True
    version = 2

    def fingerprint(self, context: PassContext) -> str:
        """The surgeons that other distributions provide, with their versions."""
        from drupe.core.registry import get_registry

        registry = get_registry()
        own = self.spec.name and registry.get("drupe_passes", self.spec.name).plugin.distribution
        others = [entry for entry in registry.of("drupe_surgeons") if entry.plugin.distribution != own]
        return " ".join(
            sorted(f"{entry.spec.name}={entry.plugin.distribution} {entry.plugin.version}" for entry in others)
        )

    def rewrite(self, proto: Any, path: Path, model: Model, config: GraphSurgeriesConfig, context: PassContext) -> Any:
        """Operate on the graph in turn."""
        import onnx_ir as ir

        from drupe.core.registry import get_registry

        registry = get_registry()
        tree = ir.from_proto(proto)
        counts = []
        for number, entry in enumerate(config.surgeries):
            context.raise_if_cancelled()
            surgeon = registry.create("drupe_surgeons", entry["surgeon"])
            parameters = {key: value for key, value in entry.items() if key != "surgeon"}
            try:
                changed = surgeon.operate(tree, type(surgeon).Config.model_validate(parameters))
            except (AttributeError, KeyError, IndexError, TypeError) as error:
                raise PassError(f"surgeries[{number}] ({entry['surgeon']}) failed on {path.name}: {error!r}") from error
            counts.append({"surgeon": entry["surgeon"], "places": changed})
        idle = [f"surgeries[{n}] ({one['surgeon']})" for n, one in enumerate(counts) if not one["places"]]
        tell_idle(self.spec.name, path.name, idle, context)
        context.report.setdefault("surgeries", {})[path.name] = counts
        if config.remove_duplicate_initializers:
            from onnx_ir.passes.common import DeduplicateHashedInitializersPass

            before = len(tree.graph.initializers)
            tree = DeduplicateHashedInitializersPass()(tree).model
            context.report.setdefault("duplicates_removed", {})[path.name] = before - len(tree.graph.initializers)
        tree.graph.sort()
        return ir.to_proto(tree)

"""MoEExpertsDistributor: a mixture of experts as one graph a rank, each with experts of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.distributed import PATTERN
from drupe.plugins.onnx.experts import find_mixtures, kept_experts
from drupe.plugins.onnx.graph_pass import GraphPassConfig
from drupe.plugins.onnx.graphs import (
    byte_size,
    companions,
    external_files,
    graph_paths,
    name_all_nodes,
    save_graph,
    scrub_graph,
)
from drupe.plugins.onnx.ranks import joined_ranks
from drupe.plugins.onnx.same_answers import largest_difference

__all__ = ["MoEExpertsDistributor", "MoEExpertsDistributorConfig"]

_CHECKED = 1 << 30
"""Graphs up to so many bytes are run beside their source."""
_TOLERANCE = 1e-3


class MoEExpertsDistributorConfig(GraphPassConfig):
    """How many ranks there are."""

    world_size: int = Field(ge=2, description="How many processes, each with a device, share the experts.")


class MoEExpertsDistributor(Pass):
    """Splits experts over ranks: model_00.onnx, model_01.onnx, … for ONNX Runtime with NCCL, one process each.

    Rules: 1. Every rank has all of the model but the tables of experts, of which it has as many rows as come out
    even, in order; the first ranks have one more where they don't. 2. Every rank routes alike; what its own experts say
    is added up over the ranks by one AllReduce a mixture. 3. All ranks get the same inputs, and give the same outputs.
    4. Graphs up to 1 GiB are run here before they are handed out: all ranks in one process, beside their source.
    """

    Config: ClassVar[type[PassConfig]] = MoEExpertsDistributorConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Check how graphs are to be written."""
        planned = super().plan(info, config, accelerator)
        if not config.all_tensors_to_one_file:
            raise ConfigError(f"{self.spec.name} writes weights to one file; leave all_tensors_to_one_file true")
        if config.external_data_name is not None:
            raise ConfigError(f"{self.spec.name}: external_data_name names one file, and each rank has one of its own")
        return planned.with_(onnx_file=None, ranks=[PATTERN.format(rank) for rank in range(config.world_size)])

    def run(self, model: Model, config: MoEExpertsDistributorConfig, context: PassContext) -> Model:
        """Write a graph for each rank."""
        import onnx

        name = self.spec.name
        path = graph_paths(model)[0]
        proto = onnx.load(str(path))
        scrub_graph(proto)
        name_all_nodes(proto)
        mixtures = find_mixtures(name, proto)
        for mixture in mixtures:
            if mixture.experts < config.world_size:
                raise ConfigError(
                    f"{name}: world_size {config.world_size}, and {mixture.router!r} chooses among {mixture.experts} "
                    "experts; each rank needs one at least"
                )
        counts = {mixture.experts for mixture in mixtures}
        if len(counts) != 1:
            raise PassError(f"{name}: layers have {sorted(counts)} experts; expected one number in all")
        spans = _spans(counts.pop(), config.world_size)
        external = config.save_as_external_data or bool(external_files(path))
        small = byte_size(proto) <= _CHECKED
        ranked = []
        for rank, (first, count) in enumerate(spans):
            context.progress(rank, len(spans), f"writing rank {rank}")
            part = kept_experts(proto, mixtures, first, count)
            if small:
                ranked.append(part)
            # What is written beside a graph is taken out of it.
            save_graph(
                onnx.ModelProto.FromString(part.SerializeToString()) if small and external else part,
                context.output_dir,
                PATTERN.format(rank),
                external=external,
                threshold=config.size_threshold,
                attributes=config.convert_attribute,
            )
        context.report["experts"] = {
            "mixtures": [mixture.router for mixture in mixtures],
            "by_rank": [list(range(first, first + count)) for first, count in spans],
        }
        if small:
            context.progress(len(spans), len(spans), "running all ranks beside their source")
            self._check(model, proto, ranked, context)
        companions(model.folder, context.output_dir)
        kept = {key: value for key, value in model.attributes.items() if key != "onnx_file"}
        attributes = {**kept, "ranks": [PATTERN.format(rank) for rank in range(config.world_size)]}
        return Model.from_dir("distributed", context.output_dir, attributes)

    def _check(self, model: Model, proto: Any, ranked: list[Any], context: PassContext) -> None:
        """Raise PassError where the ranks together say something else than their source."""
        joined = joined_ranks(self.spec.name, ranked)
        ranked.clear()
        name, share = largest_difference(self.spec.name, model, proto, joined, context)
        context.report["largest_difference"] = share
        if not share <= _TOLERANCE:
            raise PassError(
                f"{self.spec.name}: the ranks together differ from their source by {share:.2g} of the largest number "
                f"of output {name!r}; the mixtures of this graph are not of the form that can be split"
            )


def _spans(experts: int, ranks: int) -> list[tuple[int, int]]:
    """Return (first, count) of each rank's experts."""
    size, more = divmod(experts, ranks)
    found, first = [], 0
    for rank in range(ranks):
        count = size + (rank < more)
        found.append((first, count))
        first += count
    return found

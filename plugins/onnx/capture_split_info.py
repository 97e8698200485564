"""CaptureSplitInfo: notes which of a model's modules go into which piece, for SplitModel to cut the graph there."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import FileRef, IntRange, PassConfig, searchable
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.graphs import graph_paths
from drupe.plugins.onnx.stacks import blocks_of, node_path

__all__ = ["CaptureSplitInfo", "CaptureSplitInfoConfig"]

_EMBEDDING = re.compile(r"^((?:[\w.]*\.)?(?:embed_tokens|embed_in|wte|word_embeddings))\.weight$")
_COLUMNS = ("module", "num_params", "num_bytes", "num_flops")


class CaptureSplitInfoConfig(PassConfig):
    """How the modules are divided."""

    num_splits: int | None = searchable(None, IntRange(2, 8), doc="How many pieces the blocks are divided into.", ge=1)
    block_to_split: str | list[str] | None = Field(
        None,
        description="Modules whose children are divided; default: the stacks of blocks (layers.0, layers.1, …) that "
        "the model is built of, of an ONNX model by the names of its nodes.",
    )
    cost_model: FileRef | None = Field(
        None,
        description="A csv file with the columns module, num_params, num_bytes and num_flops, in the order in which "
        "modules run: pieces are filled up to the accelerator's memory, and begin anew where modules change from "
        "heavy on memory (more parameters than operations a token) to light.",
    )
    unique_embeds_lm_head_splits: bool = Field(False, description="The embedding and the head are pieces of their own.")

    @model_validator(mode="after")
    def _one_way(self) -> CaptureSplitInfoConfig:
        if (self.num_splits is None) == (self.cost_model is None):
            raise ValueError("give num_splits or cost_model, one of the two")
        if self.cost_model is not None and self.block_to_split is not None:
            raise ValueError("block_to_split is for num_splits; a cost_model names the modules itself")
        return self


class CaptureSplitInfo(Pass):
    """Notes the pieces in the model's attributes; its files stay as they are."""

    Config: ClassVar[type[PassConfig]] = CaptureSplitInfoConfig
    version = 2

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse what can't be divided. The pieces themselves are known when the pass has run."""
        if config.cost_model is not None and accelerator.options.get("memory") is None:
            raise ConfigError(
                f"{self.spec.name}: cost_model fills pieces up to the accelerator's memory; give "
                "systems.X.accelerators[].memory, or num_splits"
            )
        return super().plan(info, config, accelerator).with_(split=True)

    def run(self, model: Model, config: CaptureSplitInfoConfig, context: PassContext) -> Model:
        """Divide."""
        found = self._by_cost(config, context) if config.cost_model else self._by_number(model, config, context)
        counts: dict[str, int] = {}
        for piece in found.values():
            counts[str(piece)] = counts.get(str(piece), 0) + 1
        context.report["modules_by_piece"] = counts
        return model.derive(attributes={"split": True, "split_assignments": found})

    def _by_number(self, model: Model, config: CaptureSplitInfoConfig, context: PassContext) -> dict[str, int]:
        assert config.num_splits is not None
        modules = self._named(model, context)
        embeddings = [name for name in modules.sizes if _EMBEDDING.match(f"{name}.weight")]
        members = self._members(modules, config)
        if len(members) < config.num_splits:
            raise ConfigError(
                f"{self.spec.name}: num_splits {config.num_splits}, and there are {len(members)} blocks to divide"
            )
        first = 0
        found: dict[str, int] = {}
        if config.unique_embeds_lm_head_splits:
            self._need_embeddings(embeddings)
            found.update(dict.fromkeys(embeddings, 0))
            first = 1
        for piece, part in enumerate(_divided(members, config.num_splits)):
            found.update(dict.fromkeys(part, first + piece))
        if config.unique_embeds_lm_head_splits:
            found.update(dict.fromkeys((*modules.heads, "lm_head"), first + config.num_splits))
        return found

    def _by_cost(self, config: CaptureSplitInfoConfig, context: PassContext) -> dict[str, int]:
        path = (context.workflow_dir or Path()) / str(config.cost_model)
        room = _bytes(self.spec.name, context.accelerator.options.get("memory"))
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                raise ConfigError(f"{self.spec.name}: {config.cost_model} has no column {', '.join(absent)}")
            rows = [
                (str(row["module"]), int(row["num_params"]), int(row["num_bytes"]), int(row["num_flops"]))
                for row in reader
            ]
        alone = config.unique_embeds_lm_head_splits
        embeddings = [name for name, *_ in rows if _EMBEDDING.match(f"{name}.weight")]
        if alone:
            self._need_embeddings(embeddings)
        found: dict[str, int] = dict.fromkeys(embeddings, 0) if alone else {}
        piece, filled, heavy = (1 if alone else 0), 0, None
        for name, parameters, size, operations in rows:
            if name.lower().endswith("dropout") or (alone and (name in embeddings or name == "lm_head")):
                continue
            if size > room:
                raise ConfigError(
                    f"{self.spec.name}: module {name} takes {size} bytes, more than the accelerator's memory of {room}"
                )
            of_memory = parameters > operations > 0
            if heavy is not None and (of_memory != heavy or filled + size > room):
                piece, filled = piece + 1, 0
            found[name] = piece
            filled, heavy = filled + size, of_memory
        if alone:
            found["lm_head"] = piece + 1
        return found

    def _need_embeddings(self, embeddings: Sequence[str]) -> None:
        if not embeddings:
            raise ConfigError(f"{self.spec.name}: unique_embeds_lm_head_splits: no module of the model is an embedding")

    def _members(self, modules: _Modules, config: CaptureSplitInfoConfig) -> list[str]:
        """Return the names of the modules to divide, in the order in which they run."""
        assert config.num_splits is not None
        stacks = blocks_of(modules.sizes, config.num_splits)
        if config.block_to_split is None:
            if not stacks:
                tops = list(dict.fromkeys(name.split(".")[0] for name in modules.sizes if name))
                raise ConfigError(
                    f"{self.spec.name}: the model has no stack of blocks (modules such as layers.0, layers.1, …); name "
                    "as block_to_split modules whose children run one after another"
                    + (f"; it has {', '.join(tops[:8])}" if tops else "; its nodes are not named after modules")
                )
            return stacks
        wanted = [config.block_to_split] if isinstance(config.block_to_split, str) else config.block_to_split
        members: list[str] = []
        for block in wanted:
            prefix = f"{block}." if block else ""
            inside = [name.removeprefix(prefix).split(".")[0] for name in modules.sizes if name.startswith(prefix)]
            if not any(inside):
                there = dict.fromkeys(name.rpartition(".")[0] or name for name in stacks)
                raise ConfigError(
                    f"{self.spec.name}: block_to_split: the model has no module {block!r} that holds others"
                    + (f"; its blocks are in {', '.join(there)}" if there else "")
                )
            members += [f"{prefix}{child}" for child in dict.fromkeys(inside) if child]
        return members

    def _named(self, model: Model, context: PassContext) -> _Modules:
        if model.kind in ("hf", "pytorch"):
            return _of_network(_built(model) if model.kind == "hf" else _loaded(model, context))
        import onnx

        paths = graph_paths(model)
        if len(paths) != 1:
            raise ConfigError(f"{self.spec.name} divides one graph; the model has {len(paths)}")
        sizes: dict[str, int] = {}
        for node in onnx.load(str(paths[0]), load_external_data=False).graph.node:
            name = ".".join(node_path(node.name)[:-1])
            sizes[name] = sizes.get(name, 0) + 1
        return _Modules(sizes, ())


@dataclass(frozen=True)
class _Modules:
    """sizes: module → what it weighs itself, in the order in which modules run; heads: what gives the logits."""

    sizes: Mapping[str, int]
    heads: Sequence[str]


def _built(model: Model) -> Any:
    """Return the network of an `hf` model without its weights: files may call modules by names of older days."""
    import torch

    from drupe.plugins.huggingface.loading import load_config, model_class

    with torch.device("meta"):
        return model_class(model).from_config(
            load_config(model), trust_remote_code=bool(model.attributes.get("remote_code", False))
        )


def _loaded(model: Model, context: PassContext) -> Any:
    from drupe.plugins.huggingface.pytorch_model import load_pytorch

    return load_pytorch(model, context)


def _of_network(network: Any) -> _Modules:
    sizes: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        module = name.rpartition(".")[0]
        sizes[module] = sizes.get(module, 0) + parameter.numel()
    head = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    return _Modules(sizes, [name for name, module in network.named_modules() if head is not None and module is head])


def _divided(members: Sequence[str], count: int) -> list[Sequence[str]]:
    """Return the members in `count` parts of equal length, the first ones longer where it does not come out even."""
    size, more = divmod(len(members), count)
    ends = [(number + 1) * size + min(number + 1, more) for number in range(count)]
    return [members[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _bytes(pass_name: str, memory: Any) -> int:
    """Return a size such as 4294967296, "4GB" or "512 MiB" in bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(memory).lower())
    if not match:
        raise ConfigError(f"{pass_name}: the accelerator's memory is {memory!r}; expected bytes, or text like 4GB")
    power = " kmgt".index(match[2] or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)

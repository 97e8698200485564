"""The model kind `openvino`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe import ConfigError, Model, ModelConfig, ModelInfo, ModelKind, PassContext
from pydantic import Field

__all__ = ["OpenVinoKind"]


class OpenVinoConfig(ModelConfig):
    """Where the IR is."""

    model_path: str | dict[str, Any] = Field(description="A folder with an .xml and its .bin, or the .xml itself.")
    model_attributes: dict[str, Any] | None = Field(None, description="Attributes such as task; none is needed.")


class OpenVinoKind(ModelKind):
    """An IR, with whatever lies beside it (config.json, tokenizer)."""

    Config = OpenVinoConfig

    def references(self, config: OpenVinoConfig) -> Mapping[str, str | Mapping[str, Any]]:
        """See ModelKind.references."""
        return {"model": config.model_path}

    def info(self, config: OpenVinoConfig, workflow_dir: Path) -> ModelInfo:
        """See ModelKind.info."""
        return ModelInfo("openvino", dict(config.model_attributes or {}))

    def load(self, config: OpenVinoConfig, fetched: Mapping[str, Path], context: PassContext) -> Model:
        """See ModelKind.load. Raises ConfigError when there is not exactly one .xml with its .bin."""
        source = fetched["model"]
        if source.is_file():
            graph, copied = source, [source, source.with_suffix(".bin")]
        else:
            found = sorted(source.glob("*.xml"))
            if len(found) != 1:
                raise ConfigError(f"{source} should hold one .xml file; it holds {len(found)}")
            graph, copied = found[0], sorted(p for p in source.rglob("*") if p.is_file())
        if not graph.with_suffix(".bin").is_file():
            raise ConfigError(f"{graph.with_suffix('.bin').name} is missing beside {graph.name}")
        root = source.parent if source.is_file() else source
        for path in copied:
            into = context.output_dir / path.relative_to(root)
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into)
        return Model.from_dir("openvino", context.output_dir, dict(config.model_attributes or {}))

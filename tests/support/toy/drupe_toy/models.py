"""The model kind: one file, text.txt."""

import os
from pathlib import Path

from drupe import Model, ModelConfig, ModelInfo, ModelKind, ModelSource


class TextConfig(ModelConfig):
    model_path: str | dict


class Text(ModelKind):
    Config = TextConfig

    def references(self, config):
        return {"model": config.model_path}

    def info(self, config, workflow_dir):
        return ModelInfo("text")

    def load(self, config, fetched, context):
        (context.output_dir / "text.txt").write_text(fetched["model"].read_text())
        return Model.from_dir("text", context.output_dir)


class ToySource(ModelSource):
    """`toy://hello` is the text "hello"."""

    def identity(self, reference, options, workflow_dir):
        return reference

    def pinned(self, reference, workflow_dir):
        """`toy://@latest` is what a file says now."""
        place = os.environ.get("DRUPE_TOY_LATEST", "")
        return f"toy://{Path(place).read_text()}" if reference == "toy://@latest" else reference

    def fetch(self, reference, options, into, context):
        (into / "text").write_text(reference.removeprefix("toy://"))
        return into / "text"

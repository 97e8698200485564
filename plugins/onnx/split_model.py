"""SplitModel and ComposeOnnxModels: a graph → a composite of pieces that run one after another, and back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.graph_pass import GraphPassConfig
from drupe.plugins.onnx.graphs import (
    companions,
    context_files,
    external_files,
    graph_paths,
    save_graph,
    scrub_graph,
)
from drupe.plugins.onnx.llm_pipeline import pipeline_groups, read_settings, write_pipeline
from drupe.plugins.onnx.plain import make_plain

__all__ = ["ComposeOnnxModels", "SplitModel"]


class _Written(Pass):
    """What both share: how graphs are written."""

    Config: ClassVar[type[PassConfig]] = GraphPassConfig

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Check how graphs are to be written."""
        planned = super().plan(info, config, accelerator)
        if not config.all_tensors_to_one_file:
            raise ConfigError(f"{self.spec.name} writes weights to one file; leave all_tensors_to_one_file true")
        return planned

    def save(self, proto: Any, name: str, config: Any, context: PassContext, *, external: bool) -> None:
        """Write a graph below context.output_dir."""
        scrub_graph(proto)
        save_graph(
            proto,
            context.output_dir,
            name,
            external=config.save_as_external_data or external,
            data_name=config.external_data_name,
            threshold=config.size_threshold,
            attributes=config.convert_attribute,
        )


class SplitModel(_Written):
    """Cuts a graph where CaptureSplitInfo said.

    Rules: 1. The pieces, run one after another, give what the graph gives. 2. A piece takes nothing from a later one.
    3. What belongs to no module that was split goes with what it is calculated from.
    """

    version = 2

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse a model of which it is not known how it is split."""
        planned = super().plan(info, config, accelerator)
        if not info.attributes.get("split"):
            raise ConfigError(
                f"{self.spec.name}: nothing says how the model is split; put CaptureSplitInfo before the pass that "
                "makes the graph"
            )
        return planned.with_(split=None, split_assignments=None, onnx_file=None, **_origin(info.kind))

    def run(self, model: Model, config: Any, context: PassContext) -> Model:
        """Write split_0/model.onnx, split_1/model.onnx, …"""
        import onnx

        from drupe.plugins.onnx.splitting import assign_nodes, pieces

        paths = graph_paths(model)
        if len(paths) != 1:
            raise ConfigError(f"{self.spec.name} splits one graph; the model has {len(paths)}")
        proto = onnx.load(str(paths[0]))
        make_plain(proto)
        external = bool(external_files(paths[0]))
        places = assign_nodes(self.spec.name, proto.graph, model.attributes["split_assignments"])
        outputs = [value.name for value in proto.graph.output]
        parts = pieces(proto, places, context.output_dir.parent / "cuts" / "whole.onnx")
        components = []
        for number, part in enumerate(parts):
            context.progress(number, len(parts), f"writing piece {number}")
            name = f"split_{number}/model.onnx"
            self.save(part, name, config, context, external=external)
            components.append({"name": f"split_{number}", "file": name})
        companions(model.folder, context.output_dir)
        context.report["nodes_by_piece"] = [len(part.graph.node) for part in parts]
        gone = ("split", "split_assignments", "onnx_file")
        kept = {key: value for key, value in model.attributes.items() if key not in gone}
        attributes = {**kept, **_origin(model.kind), "components": components, "outputs": outputs}
        return Model.from_dir("composite", context.output_dir, attributes)


def _origin(kind: str) -> dict[str, Any]:
    """Return what tells that the pieces are of a model for onnxruntime-genai."""
    return {"genai": True} if kind == "genai" else {}


class ComposeOnnxModels(_Written):
    """Makes one graph of a composite's: what one gives feeds inputs of that name in those behind it. Of a pipeline
    (StaticLLM) one graph for prompts and one for tokens; embedding and head stay apart.

    Files with weights stay as they are for a pipeline, since its graphs share them; so do files with what was compiled.
    """

    version = 2

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """The result is one graph, or still a pipeline."""
        planned = super().plan(info, config, accelerator)
        if info.kind != "genai":
            return planned.with_(components=None, outputs=None, genai=None)
        if not info.attributes.get("llm_pipeline"):
            raise ConfigError(f"{self.spec.name}: the model is one graph already")
        return planned.with_(kind="genai")

    def run(self, model: Model, config: Any, context: PassContext) -> Model:
        """Write model.onnx; of a pipeline context.onnx and iterator.onnx."""
        import onnx

        from drupe.plugins.onnx.splitting import composed

        if model.kind == "genai":
            return self._pipeline(model, context)
        components = model.attributes["components"]
        files = {str(item["name"]): model.folder / str(item["file"]) for item in components}
        models = {title: onnx.load(str(path)) for title, path in files.items()}
        self._take_compiled(files, models, context)
        proto = composed(self.spec.name, models, model.attributes.get("outputs") or ())
        external = any(external_files(path) for path in files.values())
        self.save(proto, "model.onnx", config, context, external=external)
        companions(model.folder, context.output_dir)
        gone = ("components", "outputs", "genai")
        kept = {key: value for key, value in model.attributes.items() if key not in gone}
        return Model.from_dir("onnx", context.output_dir, {**kept, "onnx_file": "model.onnx"})

    def _take_compiled(self, files: Mapping[str, Path], models: Mapping[str, Any], context: PassContext) -> None:
        """Copy the files with what a provider compiled of the components."""
        taken: dict[str, Path] = {}
        for title, path in files.items():
            for name in context_files(models[title].graph):
                source = path.parent / name
                # Components that share weights share the file.
                if taken.setdefault(name, source) != source:
                    raise ConfigError(f"{self.spec.name}: two components have files {name} of what was compiled")
                (context.output_dir / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, context.output_dir / name)

    def _pipeline(self, model: Model, context: PassContext) -> Model:
        """Make one graph of each group of a pipeline that has several."""
        import onnx

        from drupe.plugins.onnx.splitting import composed

        data = read_settings(model.folder)
        groups = pipeline_groups(data["model"]["decoder"])
        gone = []
        for group in ("context", "iterator"):
            if len(groups[group]) == 1:
                continue
            models = {
                name: onnx.load(str(model.folder / f"{name}.onnx"), load_external_data=False) for name in groups[group]
            }
            proto = composed(self.spec.name, models, ())
            scrub_graph(proto)
            onnx.save(proto, str(context.output_dir / f"{group}.onnx"))
            gone += [f"{name}.onnx" for name in groups[group]]
            groups[group] = [group]
        write_pipeline(context.output_dir, data, groups, others=model.folder)
        return model.derive(add_dir=context.output_dir, remove=gone)

"""EPContextBinaryGenerator: graphs compiled for a device, whose execution provider then opens them without compiling.

A compiled graph has EPContext nodes in place of what the provider took
(onnxruntime.ai/docs/execution-providers/EP-Context-Design.html); what it left stays as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.onnx.graphs import external_files, graph_paths
from drupe.plugins.onnx.llm_pipeline import pipeline_groups, read_settings, write_pipeline, write_settings
from drupe.plugins.onnx.provider_table import compiling_providers
from drupe.plugins.onnx.providers import ProviderAbsent, add_provider, with_defaults

__all__ = ["EPContextBinaryGenerator", "EPContextConfig"]

_INTERPRETED = frozenset(
    f"{name}ExecutionProvider"
    for name in ("Azure", "CPU", "CUDA", "Dml", "Dnnl", "Js", "ROCM", "WebGpu", "WebNN", "Xnnpack")
)
"""Providers that run a graph node by node: they have nothing to write."""


class EPContextConfig(PassConfig):
    """How graphs are compiled."""

    embed_context: bool = Field(False, description="What was compiled goes into the graph, not into a file beside it.")
    weight_sharing: bool = Field(
        False,
        description="The graphs of a composite, or a pipeline's graphs for prompts and tokens, share what was compiled "
        "of their weights, where the provider can.",
    )
    provider_options: dict[str, Any] | None = Field(
        None, description="Options of the provider by its own names, over those of the target's system."
    )
    session_options: dict[str, Any] | None = Field(
        None, description="ONNX Runtime's session options by name; names with a dot are its session config entries."
    )
    run_options: dict[str, Any] | None = Field(
        None, description="Run options for genai_config.json, for the compiled graphs of a pipeline."
    )
    disable_cpu_fallback: bool = Field(False, description="Fail where the provider leaves nodes to the CPU.")

    @model_validator(mode="after")
    def _shared_apart(self) -> EPContextConfig:
        if self.weight_sharing and self.embed_context:
            raise ValueError("weight_sharing needs files that graphs can share; leave embed_context false")
        return self


class EPContextBinaryGenerator(Pass):
    """Compiles a graph for the target's execution provider; of a composite each graph, of a pipeline (StaticLLM) the
    graphs that hold layers. It runs on the target's system, where the provider is.

    Rules: 1. Every compiled graph has an EPContext node, or the pass fails. 2. What the provider left to the CPU is
    counted and told. 3. Each compiled graph is opened once. What is compiled for the processor must open; where
    what is for another device does not, that is told: it may open there only.
    """

    Config: ClassVar[type[PassConfig]] = EPContextConfig
    version = 1

    def requirements(self, config: Any, accelerator: Accelerator) -> Sequence[str]:
        """The package that brings the target's provider."""
        known = compiling_providers().get(accelerator.execution_provider or "")
        return (known.requirement,) if known else ()

    def plan(self, info: ModelInfo, config: EPContextConfig, accelerator: Accelerator) -> ModelInfo:
        """Refuse providers that compile nothing, and models that are compiled already."""
        planned = super().plan(info, config, accelerator)
        provider = accelerator.execution_provider
        if provider is None or provider in _INTERPRETED:
            what = f"{provider} runs graphs node by node and has nothing to compile" if provider else "none is named"
            raise ConfigError(
                f"{self.spec.name} compiles for the target's execution provider; {what}; name one that compiles in "
                f"systems.X.accelerators[].execution_providers: {', '.join(sorted(compiling_providers()))}"
            )
        if told := info.attributes.get("ep_context"):
            raise ConfigError(f"{self.spec.name}: the model is compiled already, for {told}")
        several = info.kind == "composite" or bool(info.attributes.get("llm_pipeline"))
        if config.weight_sharing and not several:
            raise ConfigError(f"{self.spec.name}: weight_sharing is for several graphs, and the model is one")
        if config.run_options and not info.attributes.get("llm_pipeline"):
            raise ConfigError(f"{self.spec.name}: run_options are for a pipeline; put StaticLLM before it")
        return planned.with_(ep_context=provider)

    def run(self, model: Model, config: EPContextConfig, context: PassContext) -> Model:
        """Compile below context.output_dir."""
        provider = str(context.accelerator.execution_provider)
        compiled: dict[Path, str] = {}
        for group in self._groups(model):
            for number, (path, name) in enumerate(group):
                context.progress(len(compiled), 0, f"compiling {path.name}")
                shared = (number, len(group)) if config.weight_sharing and len(group) > 1 else None
                self._compile(path, context.output_dir / f"{name}.onnx", config, context, shared)
                compiled[path] = name
            # Graphs that share weights are whole once the last of them is compiled.
            for _, name in group:
                self._open(context.output_dir / f"{name}.onnx", config, context)
        gone = _left_behind(model, list(compiled))
        changes: dict[str, Any] = {"ep_context": provider}
        names = {path.relative_to(model.folder).as_posix(): f"{name}.onnx" for path, name in compiled.items()}
        if model.kind == "genai":
            self._genai(model, compiled, config, context)
        elif model.kind == "composite":
            changes["components"] = [
                {**part, "file": names[str(part["file"])]} for part in model.attributes["components"]
            ]
        else:
            changes["onnx_file"] = next(iter(names.values()))
        return model.derive(add_dir=context.output_dir, remove=gone, attributes=changes)

    def _groups(self, model: Model) -> list[list[tuple[Path, str]]]:
        """Return the graphs to compile, each with the name of its result; those of a group may share weights."""
        if model.kind == "composite":
            files = [(str(part["name"]), str(part["file"])) for part in model.attributes["components"]]
            return [[(model.folder / file, f"{name}_ctx") for name, file in files]]
        if not model.attributes.get("llm_pipeline"):
            return [[(path, f"{path.stem}_ctx")] for path in graph_paths(model)]
        groups = pipeline_groups(read_settings(model.folder)["model"]["decoder"])
        pairs = zip(groups["context"], groups["iterator"], strict=True)
        return [[(model.folder / f"{name}.onnx", f"{name}_ctx") for name in pair] for pair in pairs]

    def _settings(self, config: EPContextConfig, context: PassContext, entries: Mapping[str, str]) -> Any:
        """Return session options with the provider, or raise PassError where it is not here."""
        import onnxruntime as ort

        from drupe.plugins.onnx.ort_session import set_session_option

        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        for name, value in (config.session_options or {}).items():
            if "." in name:
                settings.add_session_config_entry(name, _text(value))
                continue
            try:
                set_session_option(settings, name, value)
            except ValueError as error:
                raise ConfigError(
                    f"{self.spec.name}: session_options.{name}: ONNX Runtime has no such session option"
                ) from error
        for name, value in entries.items():
            settings.add_session_config_entry(name, value)
        accelerator = context.accelerator
        try:
            add_provider(
                settings, str(accelerator.execution_provider), self._options(config, context), accelerator.device
            )
        except ProviderAbsent as error:
            raise PassError(f"{self.spec.name}: {error}") from error
        return settings

    def _options(self, config: EPContextConfig, context: PassContext) -> dict[str, str]:
        """Return the provider's options."""
        accelerator = context.accelerator
        provider = str(accelerator.execution_provider)
        options = {**accelerator.provider_options, **(config.provider_options or {})}
        if config.weight_sharing and provider == "QNNExecutionProvider" and accelerator.device != "gpu":
            options.setdefault("enable_htp_weight_sharing", "1")
        return with_defaults(provider, options, accelerator.device)

    def _compile(
        self,
        path: Path,
        target: Path,
        config: EPContextConfig,
        context: PassContext,
        shared: tuple[int, int] | None,
    ) -> None:
        """Compile a graph. shared: its place among those that share weights, and how many they are."""
        import onnx
        import onnxruntime as ort

        entries = {"session.disable_cpu_ep_fallback": "1"} if config.disable_cpu_fallback else {}
        if shared is not None:
            place, count = shared
            entries |= {"ep.share_ep_contexts": "1", "ep.stop_share_ep_contexts": str(int(place == count - 1))}
        settings = self._settings(config, context, entries)
        provider = context.accelerator.execution_provider
        data = {"external_initializers_file_path": f"{target.name}.data"} if external_files(path) else {}
        try:
            compiler = ort.ModelCompiler(
                settings, str(path), embed_compiled_data_into_model=config.embed_context, **data
            )
            compiler.compile_to_file(str(target))
        except Exception as error:
            raise PassError(f"{self.spec.name}: {provider} can't compile {path.name}: {error}") from error
        kinds: Counter[str] = Counter()
        if target.is_file():
            kinds.update(node.op_type for node in onnx.load(str(target), load_external_data=False).graph.node)
        nodes = kinds.pop("EPContext", 0)
        if not nodes:
            raise PassError(
                f"{self.spec.name}: {provider} compiled nothing of {path.name}; it takes none of its nodes on this "
                "device (fixed lengths, or a quantization that the device has, are what most need)"
            )
        left = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        context.log.info("%s: %d compiled, left to the CPU: %s", target.name, nodes, left or "nothing")
        graphs = context.report.setdefault("graphs", {})
        graphs[target.stem] = {"compiled": nodes, "left": dict(sorted(kinds.items()))}

    def _open(self, target: Path, config: EPContextConfig, context: PassContext) -> None:
        """Open a compiled graph, and tell where the provider here does not: for a processor it is then of no use."""
        import onnxruntime as ort

        settings = self._settings(config, context, {})
        settings.log_severity_level = 4
        try:
            ort.InferenceSession(str(target), settings)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            provider = str(context.accelerator.execution_provider)
            known = compiling_providers().get(provider)
            why = f"; {known.unopened}" if known and known.unopened else ""
            if context.accelerator.device == "cpu":
                raise PassError(
                    f"{self.spec.name}: {provider} compiled {target.stem.removesuffix('_ctx')} for this processor and "
                    f"does not open it again: {reason}{why}"
                ) from error
            context.report["graphs"][target.stem]["does_not_open_here"] = reason
            context.log.warning(
                "%s does not open on this machine; it may where it was compiled for: %s", target.name, reason
            )

    def _genai(self, model: Model, compiled: Mapping[Path, str], config: EPContextConfig, context: PassContext) -> None:
        """Write the genai_config.json of the compiled graphs."""
        data = read_settings(model.folder)
        provider = str(context.accelerator.execution_provider)
        known = compiling_providers().get(provider)
        name = (known and known.genai) or provider.removesuffix("ExecutionProvider").lower()
        options = {**(config.session_options or {}), "provider_options": [{name: self._options(config, context)}]}
        names = {path.stem: title for path, title in compiled.items()}
        decoder = data["model"]["decoder"]
        if not model.attributes.get("llm_pipeline"):
            for part in data["model"].values():
                if isinstance(part, dict) and Path(str(part.get("filename"))).stem in names:
                    part["filename"] = f"{names[Path(part['filename']).stem]}.onnx"
                    part["session_options"] = {**part.get("session_options", {}), **options}
            write_settings(context.output_dir, data)
            return
        groups = {
            group: [names.get(entry, entry) for entry in entries] for group, entries in pipeline_groups(decoder).items()
        }
        write_pipeline(
            context.output_dir,
            data,
            groups,
            session_options=options,
            run_options=config.run_options,
            others=model.folder,
        )


def _left_behind(model: Model, compiled: Sequence[Path]) -> list[str]:
    """Return the files of a model that nothing needs once graphs are compiled."""
    kept = {path for path in graph_paths(model) if path not in compiled}
    needed = {file for path in kept for file in external_files(path)}
    gone = {path for graph in compiled for path in (graph, *external_files(graph))} - needed
    return sorted(path.relative_to(model.folder).as_posix() for path in gone)


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)

"""Decoders as a pipeline of graphs: how onnxruntime-genai reads one (`model.decoder.pipeline` of genai_config.json).

A prompt goes through `embeddings`, `context` and `lm_head` in chunks of one length, each token after it through
`embeddings`, `iterator` and `lm_head`. A model with a pipeline has the attribute `llm_pipeline`: true; its graphs lie
in NAME.onnx, and genai_config.json tells of which group each is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.errors import PassError
from drupe.plugins.onnx.inputs import graph_inputs

__all__ = [
    "CONFIG",
    "GROUPS",
    "pipeline_files",
    "pipeline_groups",
    "read_settings",
    "write_pipeline",
    "write_settings",
]

CONFIG = "genai_config.json"
GROUPS = ("embeddings", "context", "iterator", "lm_head")
"""The groups of a pipeline in the order in which their graphs are listed."""


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what genai_config.json holds. Raises PassError where it is absent or has no decoder."""
    path = folder / CONFIG
    if not path.is_file():
        raise PassError(f"no {CONFIG} lies in the model's folder; expected a model that ModelBuilder made")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data.get("model", {}).get("decoder"), dict):
        raise PassError(f"{CONFIG} has no model.decoder; expected a decoder that generates text")
    return data


def write_settings(folder: Path, data: Mapping[str, Any]) -> None:
    """Write genai_config.json."""
    (folder / CONFIG).write_text(json.dumps(data, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def pipeline_files(decoder: Mapping[str, Any]) -> list[str]:
    """Return the files of the graphs that a decoder's pipeline names, in order. decoder: of genai_config.json."""
    # onnxruntime-genai reads one mapping as well as a list of them.
    listed = decoder.get("pipeline") or []
    entries = [listed] if isinstance(listed, Mapping) else listed
    found = [part["filename"] for entry in entries for part in entry.values() if part.get("filename")]
    return list(dict.fromkeys(found))


def pipeline_groups(decoder: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the graphs of each group, as `write_pipeline` listed them. decoder: of genai_config.json."""
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    entries = decoder["pipeline"][0]
    for name, entry in entries.items():
        if not entry.get("run_on_token_gen", True):
            group = "context"
        elif not entry.get("run_on_prompt", True):
            group = "iterator"
        else:
            group = "lm_head" if groups["context"] else "embeddings"
        groups[group].append(name)
    return groups


def write_pipeline(
    folder: Path,
    data: dict[str, Any],
    groups: Mapping[str, Sequence[str]],
    *,
    session_options: Mapping[str, Any] | None = None,
    run_options: Mapping[str, Any] | None = None,
    others: Path | None = None,
) -> None:
    """Write genai_config.json for the graphs of a pipeline that lie in a folder.

    data: the config so far. session_options, run_options: those of the context and iterator graphs; where they are not
    given, those of the pipeline that was there before hold. others: where graphs lie that are not in the folder.
    """
    import onnx

    decoder = data["model"]["decoder"]
    session_options = session_options or _options(decoder, "session_options")
    run_options = run_options or _options(decoder, "run_options")
    entries: dict[str, Any] = {}
    for group in GROUPS:
        for name in groups[group]:
            path = folder / f"{name}.onnx"
            path = path if others is None or path.is_file() else others / path.name
            graph = onnx.load(str(path), load_external_data=False).graph
            entry: dict[str, Any] = {
                "filename": f"{name}.onnx",
                "inputs": [value.name for value in graph_inputs(graph)],
                "outputs": [value.name for value in graph.output],
            }
            if group in ("context", "iterator"):
                entry["run_on_prompt"], entry["run_on_token_gen"] = group == "context", group == "iterator"
                if session_options:
                    entry["session_options"] = dict(session_options)
                if run_options:
                    entry["run_options"] = dict(run_options)
            entries[name] = entry
    if groups["lm_head"]:
        # It is left out for the chunks of a prompt before the last.
        entries[groups["lm_head"][-1]]["is_lm_head"] = True
    decoder.pop("filename", None)
    decoder["pipeline"] = [entries]
    data["model"]["type"] = "decoder-pipeline"
    write_settings(folder, data)


def _options(decoder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the options that graphs of a pipeline have."""
    listed = decoder.get("pipeline") or [{}]
    return next((part[name] for part in listed[0].values() if part.get(name)), {})

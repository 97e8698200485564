"""`drupe generate`: ask a model of an output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

__all__ = ["generate"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("text")
@click.option("--max-new-tokens", default=32, show_default=True, type=click.IntRange(1), help="Length of the answer.")
@click.option("--raw", is_flag=True, help="Give TEXT to the model as it is, without the prompt template of its run.")
@click.option("--device", default="cpu", show_default=True, help="The device to run on.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer with its token count and timings as JSON.")
def generate(model: Path, text: str, max_new_tokens: int, raw: bool, device: str, as_json: bool) -> None:
    """Ask the model in the folder MODEL about TEXT.

    Where the folder lies in the output of a run, TEXT is put into the prompt template that the model was trained and
    measured with.
    """
    from drupe.core.accelerators import Accelerator
    from drupe.core.errors import ConfigError
    from drupe.core.machine import cpu_count
    from drupe.core.model import Model
    from drupe.core.registry import get_registry
    from drupe.core.runtimes import GenerateOptions
    from drupe.core.serving import find_runtime

    kind, attributes = _kind_of(model)
    accelerator = Accelerator(device)
    hint = {} if raw else _hint(model)
    registry = get_registry()
    entry = find_runtime(registry, kind, accelerator)
    runtime = registry.resolve(entry)(entry.spec)
    loaded = Model(kind, {}, attributes, path=model.resolve())
    if "generate" not in runtime.capabilities(loaded):
        raise ConfigError(f"the {kind} model in {model} can't generate text; its runtime {entry.spec.name} can't")
    options = runtime.options(accelerator, {"threads": cpu_count()})
    with runtime.open(loaded, accelerator, options) as session:
        stop = tuple(hint.get("stop", ()))
        result = session.generate(_prompt(text, hint), GenerateOptions(max_new_tokens=max_new_tokens, stop=stop))
    answer = result.outputs["text"].strip()
    if as_json:
        seconds = [round(float(s), 4) for s in result.outputs["token_seconds"]]
        click.echo(json.dumps({"text": answer, "tokens": len(seconds), "token_seconds": seconds}, ensure_ascii=False))
    else:
        click.echo(answer)


def _kind_of(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Tell a model folder's kind by the files that are its mark."""
    from drupe.core.errors import ConfigError

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name the folder of a model, such as OUTPUT/TARGET/model")
    artifact = _artifact(folder)
    if artifact is not None:
        return artifact["kind"], artifact["attributes"]
    if (folder / "genai_config.json").is_file():
        return "genai", {}
    if (folder / "config.json").is_file():
        adapter = {"adapter": "adapter"} if (folder / "adapter" / "adapter_config.json").is_file() else {}
        return "hf", {"task": "text-generation", **adapter}
    if any(folder.glob("*.onnx")):
        raise ConfigError(
            f"{folder} holds a plain ONNX model, which does not generate by itself; build one with ModelBuilder"
        )
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
    raise ConfigError(
        f"{folder} holds no model that is known: found {found}; expected genai_config.json or config.json"
    )


def _target(folder: Path) -> Mapping[str, Any] | None:
    """Return what the manifest of the run that made this folder says of its target."""
    from drupe.core.results import MANIFEST

    folder = folder.resolve()
    for parent in list(folder.parents)[:2]:
        path = parent / MANIFEST
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))
            target: Mapping[str, Any] | None = data.get("targets", {}).get(folder.parent.name)
            return target
    return None


def _artifact(folder: Path) -> Mapping[str, Any] | None:
    target = _target(folder)
    return target.get("artifact") if target else None


def _hint(folder: Path) -> Mapping[str, Any]:
    target = _target(folder)
    return target.get("generate", {}) if target else {}


def _prompt(text: str, hint: Mapping[str, Any]) -> str:
    """Put the text into the template's one field."""
    import string

    template = hint.get("prompt_template")
    if not template:
        return text
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return str(template.format(**dict.fromkeys(fields, text)))

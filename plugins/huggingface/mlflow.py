"""MLflow models of Hugging Face transformers: MLmodel says where weights, configuration and tokenizer lie.

Both forms are read: the flavor `transformers` (model/, components/tokenizer/) and Azure ML's older ones (data/model,
data/config, data/tokenizer). Nothing of what such a model brings along is run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.core.errors import ConfigError

__all__ = ["MlflowModel", "read_mlflow"]

_FLAVORS = ("transformers", "hftransformersv2", "hftransformers", "hf_pytorch")
_WHOLE = ("data/model", "model", "data", ".")


@dataclass(frozen=True)
class MlflowModel:
    """parts: the folders that make the Hugging Face folder together, the most telling last. task: what MLmodel says."""

    parts: tuple[Path, ...]
    task: str | None = None

    def whole(self, scratch: Path) -> Path:
        """Return one folder with everything, made below `scratch` where the model keeps its parts apart."""
        if len(self.parts) == 1:
            return self.parts[0]
        scratch.mkdir(parents=True, exist_ok=True)
        for part in self.parts:
            for path in sorted(part.rglob("*")):
                target = scratch / path.relative_to(part)
                if path.is_dir():
                    target.mkdir(exist_ok=True)
                    continue
                target.unlink(missing_ok=True)
                try:
                    os.link(path.resolve(), target)
                except OSError:
                    shutil.copyfile(path, target)
        return scratch


def read_mlflow(folder: Path) -> MlflowModel | None:
    """Return what an MLflow model holds, or None where the folder is none. Raises ConfigError for another flavor."""
    if not (folder / "MLmodel").is_file():
        return None
    flavors = _flavors(folder / "MLmodel")
    flavor: Mapping[str, Any] = next((flavors[name] for name in _FLAVORS if name in flavors), {})
    task = flavor.get("task") or flavor.get("task_type")
    task = str(task) if isinstance(task, str) and task else None
    binary = str(flavor.get("model_binary") or flavor.get("model_data") or "")
    named = [binary, f"{binary}/model"] if binary and ".." not in Path(binary).parts else []
    for inner in (*named, *_WHOLE):
        if (folder / inner / "config.json").is_file():
            return MlflowModel((*_tokenizers(folder), *_beside(folder / inner), folder / inner), task)
    for inner in (*named, "data", "."):
        weights, config = folder / inner / "model", folder / inner / "config"
        if (config / "config.json").is_file() and weights.is_dir():
            return MlflowModel((*_beside(weights), weights, config), task)
    if not flavor:
        told = ", ".join(sorted(flavors)) or "none"
        raise ConfigError(f"{folder} is an MLflow model of the flavors {told}; expected transformers")
    raise ConfigError(
        f"{folder} is an MLflow model without a config.json; expected model/, or data/model and data/config"
    )


def _flavors(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        flavors = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("flavors") or {}
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ConfigError(f"{path} can't be read: {str(error).splitlines()[0]}") from error
    if not isinstance(flavors, Mapping):
        raise ConfigError(f"{path} lists no flavors")
    return {str(name): value if isinstance(value, Mapping) else {} for name, value in flavors.items()}


def _beside(model: Path) -> list[Path]:
    """Return the tokenizer's folder beside the model's, where there is one."""
    tokenizer = model.parent / "tokenizer"
    return [tokenizer] if model.name == "model" and tokenizer.is_dir() else []


def _tokenizers(folder: Path) -> list[Path]:
    """Return the components that lie apart from the model, each in a folder of its own."""
    names = ("tokenizer", "processor", "feature_extractor", "image_processor")
    return [folder / "components" / name for name in names if (folder / "components" / name).is_dir()]

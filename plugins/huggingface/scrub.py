"""Takes paths, names and times out of model folders, so that equal work gives equal digests."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["scrub_folder"]

_KEYS = {
    "config.json": ("_name_or_path", "_model_name_or_path"),
    "generation_config.json": ("_name_or_path",),
    "tokenizer_config.json": ("name_or_path", "is_local", "local_files_only", "special_tokens_map_file"),
    "adapter_config.json": ("base_model_name_or_path", "revision"),
}


def scrub_folder(folder: Path) -> None:
    """Rewrite the JSON files of a model or adapter folder without what tells where it came from.

    `base_model_name_or_path` of adapters becomes "" (peft wants the key); keys are sorted; README.md cards that
    libraries generate are removed.
    """
    for name, keys in _KEYS.items():
        for path in sorted(folder.rglob(name)):
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                continue
            for key in keys:
                data.pop(key, None)
            if name == "adapter_config.json":
                data["base_model_name_or_path"] = ""
                data["revision"] = None
                if isinstance(data.get("target_modules"), list):
                    # peft keeps a set, whose order changes from process to process.
                    data["target_modules"] = sorted(data["target_modules"])
            path.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    for card in sorted(folder.rglob("README.md")):
        if (card.parent / "adapter_config.json").is_file():
            card.unlink()

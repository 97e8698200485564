"""MergeTensorParallel: the ranks of a split model as one Hugging Face model again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.huggingface.config_facts import text_config
from drupe.plugins.huggingface.parallel.layout import FILE, Layout, rank_file

__all__ = ["MergeTensorParallel"]


class MergeTensorParallel(Pass):
    """Puts the ranks of a split model together: the model that PyTorchTensorParallel was given, weight for weight.

    Copies of heads that several ranks had become one again. Where embedding and head were one table that can't be cut
    at one place, each keeps its own.
    """

    Config: ClassVar[type[PassConfig]] = PassConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """See Pass.plan."""
        return super().plan(info, config, accelerator).with_(ranks=None, world_size=None)

    def run(self, model: Model, config: PassConfig, context: PassContext) -> Model:
        """Write one checkpoint."""
        from safetensors import SafetensorError, safe_open

        from drupe.plugins.huggingface.parallel.network import empty_model, fill
        from drupe.plugins.huggingface.scrub import scrub_folder

        layout, out = Layout.read(model.folder), context.output_dir
        data = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
        if layout.copies is not None:
            text_config(data)["num_key_value_heads"] //= layout.copies.count
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        whole = empty_model(out, model.attributes.get("task"))
        try:
            with ExitStack() as stack:
                ranks = [
                    stack.enter_context(safe_open(rank_file(model.folder, name), framework="pt"))
                    for name in layout.ranks
                ]
                fill(whole, self._joined(layout, ranks, context))
        except (ConfigError, SafetensorError, RuntimeError) as error:
            raise PassError(f"{self.spec.name}: the ranks' weights don't fit together: {error}") from error
        whole.config._name_or_path = ""
        whole.save_pretrained(out)
        scrub_folder(out)
        gone = [FILE, *(file for file in model.files if file.startswith(tuple(f"{name}/" for name in layout.ranks)))]
        return model.derive(kind="hf", add_dir=out, remove=gone, attributes={"ranks": None, "world_size": None})

    def _joined(self, layout: Layout, ranks: list[Any], context: PassContext) -> Iterator[tuple[str, Any]]:
        names = sorted(ranks[0].keys())
        for number, name in enumerate(names):
            context.progress(number, len(names), name)
            yield name, layout.joined(name, [rank.get_tensor(name) for rank in ranks])

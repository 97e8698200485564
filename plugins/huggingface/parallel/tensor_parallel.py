"""PyTorchTensorParallel: a Hugging Face model's layers split over ranks, a folder of weights each."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, model_validator

from drupe.core.accelerators import Accelerator
from drupe.core.config import FileRef, PassConfig, tell_unused
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, EvaluationError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.plugins.huggingface.config_facts import text_config
from drupe.plugins.huggingface.parallel.layout import PATTERN, WEIGHTS, Copies, Layout, Split, rank_file
from drupe.plugins.huggingface.parallel.plans import base_plan, check_plan, check_sizes, copies_of_heads
from drupe.plugins.huggingface.parallel.ranks import Ranks
from drupe.plugins.huggingface.parallel.short import LAYERS, short_model
from drupe.plugins.huggingface.parallel.user_plan import UserPlan, user_plan

__all__ = ["PyTorchTensorParallel", "PyTorchTensorParallelConfig"]

_CHECKED = 1 << 30
"""Models of up to so many bytes are run beside their source; of larger ones, a few such layers are."""
_TOLERANCE = 1e-3


class PyTorchTensorParallelConfig(PassConfig):
    """How many ranks there are, and what is split."""

    world_size: int = Field(2, ge=2, description="How many ranks, each with a device, share the model.")
    parallel_jobs: int | None = Field(
        None, ge=0, description="How many ranks are written at one time; 0: one by one; not given: as the job has cpus."
    )
    user_script: FileRef | None = Field(None, description="A Python file of the user's; needs --allow user-scripts.")
    script_dir: FileRef | None = Field(None, description="The folder with what user_script imports.")
    class_name: str | None = Field(
        None,
        description="Class of user_script, made without arguments, whose tp_plan(config) returns the plan: module or "
        "weight, with * for a layer's number, to a style of transformers (colwise, rowwise, …); and whose "
        "divided(config), if it has one, returns module to names of its numbers that ranks share, such as num_heads. "
        "Not given: transformers' own plan for the architecture.",
    )

    @model_validator(mode="after")
    def _together(self, info: ValidationInfo) -> PyTorchTensorParallelConfig:
        if self.user_script is None:
            # Olive asks for a class and takes its own for Llama whatever the name.
            reason = "no user_script is given, so transformers' own plan for the architecture is taken"
            tell_unused(info, self, ("class_name",), reason)
        if self.user_script is not None and self.class_name is None:
            raise ValueError("user_script is given and no class_name; name the class in it that has the plan")
        if self.script_dir is not None and self.user_script is None:
            raise ValueError("script_dir is for a user_script, which is not given")
        return self


class PyTorchTensorParallel(Pass):
    """Splits a model's layers over ranks: model_00, model_01, … with a rank's weights, beside config and tokenizer.

    Rules: 1. What is split, and where, says transformers' tensor-parallel plan of the architecture: of two layers in a
    row the first by columns and the second by rows (Shoeybi et al. 2019, arXiv 1909.08053), embedding and head by the
    vocabulary; norms are whole on every rank. 2. Attention is split by heads: their number divides by `world_size`.
    Heads of keys and values may be fewer, where `world_size` divides by their number: ranks then have copies. 3. All
    ranks get the same inputs and give the same outputs. 4. Models up to 1 GiB are run here before they are handed out:
    all ranks as processes, beside their source; of larger ones four such layers are, with random weights, before the
    work. 5. `tensor_parallel.json` tells what is cut where.

    The result is of the kind `distributed_hf` (DistributedHfModel). Metrics start its ranks, on a CPU or on as many
    GPUs; MergeTensorParallel makes one model again. In a program of one's own, started by torchrun, each rank loads its
    part with `load_rank(folder, rank, mesh)` of `drupe.plugins.huggingface.parallel.network`.
    """

    Config: ClassVar[type[PassConfig]] = PyTorchTensorParallelConfig
    version = 1

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Refuse what can't be split, or not over so many ranks, as far as it is known before work."""
        planned = super().plan(info, config, accelerator)
        name, known = self.spec.name, info.attributes
        if known.get("adapter"):
            raise ConfigError(f"{name}: the model has an unmerged adapter; put MergeAdapterWeights before it")
        if quantization := known.get("quantization"):
            raise ConfigError(
                f"{name} splits float weights; the model is quantized ({quantization}), and cut scales and packed "
                "numbers would belong to nothing; split the model that was quantized"
            )
        if known.get("remote_code"):
            raise ConfigError(f"{name} splits architectures of transformers; the model brings code of its own")
        if config.user_script is None:
            model_type = known.get("model_type")
            check_plan(name, model_type)
            plan = base_plan(str(model_type)) if model_type else None
            if plan:
                check_sizes(name, known.get("sizes", {}), plan, config.world_size)
        ranks = [PATTERN.format(rank) for rank in range(config.world_size)]
        return planned.with_(
            ranks=ranks, world_size=config.world_size, sizes=None, load_kwargs=_kept_kwargs(info.attributes)
        )

    def run(self, model: Model, config: PyTorchTensorParallelConfig, context: PassContext) -> Model:
        """Write what each rank has."""
        import torch

        torch.set_num_threads(context.resources.thread_count)
        small = sum(path.stat().st_size for path in model.folder.glob("*.safetensors")) <= _CHECKED
        if not small:
            context.progress(0, 1, f"trying the plan on {LAYERS} layers with random weights")
            self._try(model, config, context)
        return self._split(model, config, context, check=small)

    def _try(self, model: Model, config: PyTorchTensorParallelConfig, context: PassContext) -> None:
        """Split a model of few such layers, and run its ranks beside it."""
        context.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=context.checkpoint_dir) as folder:
            self._check_kind(json.loads((model.folder / "config.json").read_text(encoding="utf-8")))
            try:
                short = short_model(model, Path(folder) / "source", context.seed)
                (Path(folder) / "ranks").mkdir()
                inside = replace(context, output_dir=Path(folder) / "ranks", report={}, on_progress=None)
                self._split(short, config, inside, check=True)
            except PassError as error:
                raise PassError(f"{error} (seen on {LAYERS} of its layers with random weights)") from error
        context.report["tensor_parallel_tried"] = {"layers": LAYERS, **inside.report["tensor_parallel"]}

    def _split(self, model: Model, config: PyTorchTensorParallelConfig, context: PassContext, *, check: bool) -> Model:
        from drupe.plugins.huggingface.loading import load_model

        name, out, task = self.spec.name, context.output_dir, model.attributes.get("task")
        data = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
        self._check_kind(data)
        given = user_plan(name, data, config, context)
        with Ranks(1, threads=context.resources.thread_count) as one:
            try:
                layout, tensors = self._layout(data, given, config, task, one, out)
            except EvaluationError as error:
                raise ConfigError(f"{name}: {error}") from error
        context.progress(0, config.world_size + 2, "loading the model")
        source = load_model(model)
        dtype = str(source.dtype).removeprefix("torch.")
        if dtype != data.get("dtype", data.get("torch_dtype")):
            _write_config({**{key: value for key, value in data.items() if key != "torch_dtype"}, "dtype": dtype}, out)
        state = source.state_dict()
        if lacking := sorted(key for key in tensors if key not in state):
            raise PassError(f"{name}: the loaded model has no {lacking[0]}, which its config.json asks for")
        held = {key: state[key] for key in sorted(tensors)}
        sizes = self._write(layout, held, config, context)
        layout.write(out)
        total = sum(tensor.nbytes for tensor in held.values())
        context.report["tensor_parallel"] = {
            "plan": dict(layout.plan), "bytes_of_source": total, "bytes_by_rank": sizes,
        }  # fmt: skip
        gone = [file for file in model.files if file.endswith((".safetensors", ".safetensors.index.json", ".bin"))]
        attributes = {
            "ranks": list(layout.ranks), "world_size": layout.world_size, "dtype": dtype,
            "load_kwargs": _kept_kwargs(model.attributes),
        }  # fmt: skip
        kept = replace(model, files={file: digest for file, digest in model.files.items() if file != "config.json"})
        result = kept.derive(kind="distributed_hf", add_dir=out, remove=gone, attributes=attributes)
        if check:
            context.progress(config.world_size + 1, config.world_size + 2, "running the ranks beside their source")
            self._check(result.at(out), source, context)
        return result

    def _check_kind(self, data: Mapping[str, Any]) -> None:
        if data.get("is_encoder_decoder"):
            raise ConfigError(f"{self.spec.name} splits models of one stack; this one has encoder and decoder")
        if quantization := (data.get("quantization_config") or {}).get("quant_method"):
            raise ConfigError(f"{self.spec.name} splits float weights; the model is quantized ({quantization})")
        if any(isinstance(data.get(part), Mapping) for part in ("vision_config", "audio_config")):
            raise ConfigError(f"{self.spec.name} splits models of texts; this one takes pictures or sound as well")

    def _layout(
        self,
        data: dict[str, Any],
        given: UserPlan,
        config: PyTorchTensorParallelConfig,
        task: str | None,
        one: Ranks,
        out: Path,
    ) -> tuple[Layout, Collection[str]]:
        """Return where the model is cut, and the names of what is written. `data`, its config.json, is made that of
        what comes out, and written.
        """
        ranks = config.world_size
        asked = ("layout", str(out.absolute()), task, given.styles, given.divided, ranks)
        _write_config(data, out)
        plan, tensors, apart = one.ask(*asked)[0]
        sizes = dict(text_config(data))
        check_sizes(self.spec.name, sizes, plan, ranks)
        count = copies_of_heads(sizes, plan, ranks)
        inner = text_config(data)
        if count > 1:
            inner["num_key_value_heads"] = ranks
        if apart:
            data["tie_word_embeddings"] = inner["tie_word_embeddings"] = False
        copies = None
        if count > 1 or apart:
            _write_config(data, out)
            plan, tensors, _ = one.ask(*asked)[0]
        if count > 1:
            head = int(sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"])
            split = [key for key, (cut, _) in tensors.items() if cut and key.split(".")[-2] in ("k_proj", "v_proj")]
            copies = Copies(count, head, tuple(sorted(split)))
        for key, (cut, shape) in sorted(tensors.items()):
            if cut is not None:
                self._check_cut(key, cut, shape, ranks, int(sizes.get("vocab_size") or 0))
        names = tuple(PATTERN.format(rank) for rank in range(ranks))
        splits = {key: cut for key, (cut, _) in sorted(tensors.items()) if cut is not None}
        return Layout(ranks, names, plan, splits, copies, given.divided), tuple(tensors)

    def _check_cut(self, key: str, cut: Split, shape: tuple[int, ...], ranks: int, vocabulary: int) -> None:
        size = shape[cut.dim]
        # A vocabulary is what it is: the last rank may have less of its rows, but not none.
        may_differ = size == vocabulary and cut.parts == 1 and -(-size // ranks) * (ranks - 1) < size
        if size % (ranks * cut.parts) and not may_differ:
            raise ConfigError(
                f"{self.spec.name}: {key} has {size} {'rows' if cut.dim == len(shape) - 2 else 'columns'}, which do "
                f"not divide among {ranks} ranks; choose another world_size"
            )

    def _write(
        self, layout: Layout, held: Mapping[str, Any], config: PyTorchTensorParallelConfig, context: PassContext
    ) -> list[int]:
        """Write the ranks' weights; return how many bytes each has."""
        from safetensors.torch import save_file

        def write(rank: int) -> int:
            path = rank_file(context.output_dir, layout.ranks[rank])
            path.parent.mkdir(parents=True, exist_ok=True)
            pieces = {key: layout.piece(key, tensor, rank) for key, tensor in held.items()}
            save_file(pieces, path, {"format": "pt"})
            return sum(piece.nbytes for piece in pieces.values())

        jobs = context.resources.cpus if config.parallel_jobs is None else config.parallel_jobs
        sizes = []
        with ThreadPoolExecutor(max_workers=max(1, min(jobs, layout.world_size))) as pool:
            for rank, size in enumerate(pool.map(write, range(layout.world_size))):
                context.progress(rank + 1, layout.world_size + 2, f"wrote {layout.ranks[rank]}/{WEIGHTS}")
                sizes.append(size)
        return sizes

    def _check(self, result: Model, source: Any, context: PassContext) -> None:
        """Raise PassError where the ranks together say something else than their source."""
        import numpy as np

        from drupe.plugins.huggingface.parallel.runtime import RanksSession
        from drupe.plugins.huggingface.runtime import TransformersSession

        random = np.random.default_rng(context.seed)
        below = source.get_input_embeddings().weight.shape[0]
        batch = {"input_ids": random.integers(0, below, (2, 12)), "attention_mask": np.ones((2, 12), np.int64)}
        batch["attention_mask"][1, 9:] = 0
        try:
            wanted = TransformersSession(source.float(), None, "cpu", result).forward(batch).outputs
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise PassError(
                f"{self.spec.name}: the model can't be run beside its ranks: {type(error).__name__}: {error}"
            ) from error
        threads = context.resources.thread_count
        try:
            with Ranks(int(result.attributes["world_size"]), threads=threads) as ranks:
                held = ranks.ask("open", result.to_json(), str(result.folder.absolute()), {"dtype": "float32"})
                found = RanksSession(ranks, held).forward(batch).outputs
        except EvaluationError as error:
            raise PassError(f"{self.spec.name}: the ranks can't be run together: {error}") from error
        output = "logits" if "logits" in found else "last_hidden_state"
        theirs = wanted[output]
        kept = batch["attention_mask"].astype(bool) if theirs.ndim == 3 else slice(None)
        scale = float(np.abs(theirs[kept]).max()) or 1.0
        share = float(np.abs(found[output][kept] - theirs[kept]).max()) / scale
        context.report["tensor_parallel"]["largest_difference"] = share
        if not share <= _TOLERANCE:
            raise PassError(
                f"{self.spec.name}: the ranks together differ from their source by {share:.2g} of the largest number "
                f"of {output}; the plan does not fit this model, or not so many ranks"
            )


def _kept_kwargs(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how ranks are to be loaded; the type of the weights is as they are written."""
    chosen = (attributes.get("load_kwargs") or {}).get("attn_implementation")
    return {"attn_implementation": chosen} if chosen else None


def _write_config(data: Mapping[str, Any], folder: Path) -> None:
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")

"""What the table of architectures rests on: running passes on a tiny model, and how far results are from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tests.plugins.onnx.graphs import CPU, run_pass

from benchmarks.architecture_models import Architecture, batches, write
from drupe.core.context import Resources
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.huggingface.loading import load_model
from drupe.testing import make_context

EXACT, HALF, EIGHT, FOUR = 1e-3, 3e-2, 0.3, 0.95
"""Largest relative error, as the norm of the difference over that of the source's outputs."""


class Wrong(Exception):
    """The result is not what its source is."""


class Trial:
    """One architecture: its source, what it says, and the graphs that several cases start from."""

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        import torch

        self.architecture = architecture
        self.folder = folder
        self.network = write(architecture, folder / "source")
        self.batches = batches(architecture)
        self.count = 0
        self.kept: dict[str, Model | Exception] = {}
        self.expected = []
        for batch in self.batches:
            with torch.inference_mode():
                out = self.network(**{name: torch.from_numpy(value) for name, value in batch.items()}, return_dict=True)
            self.expected.append({k: v.numpy() for k, v in out.items() if isinstance(v, torch.Tensor)})
        kinds = get_registry()
        kind = kinds.create("drupe_model_kinds", "hf")
        values: dict[str, Any] = {
            "model_path": str(folder / "source"),
            **({"task": architecture.task} if architecture.task else {}),
        }
        if architecture.outputs:
            values["io_config"] = {"output_names": list(architecture.outputs)}
        config = type(kind).Config.model_validate(values)
        context = make_context(folder / "import", resources=Resources(cpus=1, threads=1))
        loaded = kind.load(config, {"model": folder / "source"}, context)
        self.source = loaded.at(context.output_dir)

    @property
    def decoder(self) -> bool:
        return self.architecture.kind == "decoder"

    def data(self) -> list[Sample]:
        """Calibration and training samples."""
        random = np.random.default_rng(1)
        found = []
        for number in range(12):
            batch = batches(self.architecture)[-1]
            inputs = {name: value[0] for name, value in batch.items()}
            if "input_ids" in inputs:
                inputs["input_ids"] = random.integers(4, 250, inputs["input_ids"].shape)
                inputs["attention_mask"] = np.ones_like(inputs["input_ids"])
            if self.decoder:
                inputs["labels"] = inputs["input_ids"].copy()
            found.append(Sample(str(number), inputs, number % 3, str(number)))
        return found

    def run(self, name: str, model: Model, **config: Any) -> Model:
        """Run a pass by name, with its own folder."""
        self.count += 1
        context = make_context(
            self.folder / f"{self.count}-{name}", accelerator=CPU, data={"data": self.data()},
            resources=Resources(cpus=1, threads=1),
        )  # fmt: skip
        return run_pass(name, model, context.output_dir, context=context, **config)

    def once(self, key: str, make: Callable[[], Model]) -> Model:
        """Make what several cases start from."""
        if key not in self.kept:
            try:
                self.kept[key] = make()
            except Exception as error:
                self.kept[key] = error
        found = self.kept[key]
        if isinstance(found, Exception):
            raise found
        return found

    def graph(self, *, traced: bool = False) -> Model:
        return self.once(f"graph{traced}", lambda: self.run("OnnxConversion", self.source, **exporter(traced)))

    def stepped(self, *, traced: bool = False) -> Model:
        return self.once(f"past{traced}", lambda: self.run("OnnxConversion", self.past, **exporter(traced)))

    @property
    def past(self) -> Model:
        return Model(
            "hf", self.source.files, {**self.source.attributes, "task": "text-generation-with-past"}, self.source.folder
        )


def exporter(traced: bool) -> dict[str, Any]:
    return {"use_dynamo_exporter": False, "target_opset": 17} if traced else {}


def session(model: Model) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    path = model.folder / str(model.attributes["onnx_file"])
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def distance(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], mask: np.ndarray | None) -> float:
    """Return the worst relative error over outputs of the same names, where no input is padding."""
    shared = [name for name in wanted if name in found]
    if not shared:
        raise Wrong(f"it gives {', '.join(found)}; the source gives {', '.join(wanted)}")
    worst = 0.0
    for name in shared:
        ours, theirs = found[name].astype(np.float64), wanted[name].astype(np.float64)
        if ours.shape != theirs.shape:
            raise Wrong(f"{name} has shape {ours.shape}; the source's has {theirs.shape}")
        if mask is not None and theirs.ndim >= 2 and theirs.shape[:2] == mask.shape:
            ours, theirs = ours[mask == 1], theirs[mask == 1]
        if not np.isfinite(ours).all() and np.isfinite(theirs).all():
            raise Wrong(f"{name} is not finite")
        ours, theirs = np.nan_to_num(ours, posinf=1e4, neginf=-1e4), np.nan_to_num(theirs, posinf=1e4, neginf=-1e4)
        worst = max(worst, float(np.linalg.norm(ours - theirs) / max(1e-9, np.linalg.norm(theirs))))
    return worst


def near(error: float, limit: float) -> float:
    if not error <= limit:
        raise Wrong(f"relative error {error:.3g}, over {limit:g}")
    return error


def compare_graph(trial: Trial, graph: Model, limit: float) -> float:
    """Compare a graph with the source on every batch."""
    opened = session(graph)
    inputs = {item.name: item.type for item in opened.get_inputs()}
    worst = 0.0
    for batch, wanted in zip(trial.batches, trial.expected, strict=True):
        known = {**batch}
        if "input_ids" in batch:
            known |= {"token_type_ids": np.zeros_like(batch["input_ids"])}
            known |= {"position_ids": np.broadcast_to(np.arange(batch["input_ids"].shape[1]), batch["input_ids"].shape)}
        if lacking := set(inputs) - set(known):
            raise Wrong(f"the graph wants {', '.join(sorted(lacking))}")
        feed = {
            name: known[name].astype(np.float16) if "float16" in kind else known[name] for name, kind in inputs.items()
        }
        unused = set(batch) - set(inputs)
        if unused:
            raise Wrong(f"the graph has no input {', '.join(sorted(unused))}")
        try:
            found = dict(zip([o.name for o in opened.get_outputs()], opened.run(None, feed), strict=True))
        except Exception as error:
            sizes = {name: value.shape for name, value in feed.items()}
            raise Wrong(f"onnxruntime fails at {sizes}: {str(error)[:300]}") from error
        worst = max(worst, distance(found, wanted, batch.get("attention_mask")))
    return near(worst, limit)


def compare_steps(trial: Trial, graph: Model, limit: float) -> float:
    """Feed a text in two pieces and single tokens, rows padded on the left; compare with the whole text at once."""
    import torch

    opened = session(graph)
    inputs = {item.name: item for item in opened.get_inputs()}
    outputs = [item.name for item in opened.get_outputs()]
    random = np.random.default_rng(5)
    worst = 0.0
    for rows, length in ((1, 9), (3, 14)):
        ids = random.integers(4, 250, (rows, length))
        mask = np.ones_like(ids)
        for row in range(1, rows):
            mask[row, : 2 * row] = 0
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        with torch.inference_mode():
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            if "position_ids" in inputs:
                given["position_ids"] = torch.from_numpy(positions)
            wanted = trial.network(**given).logits.numpy()
        past = {
            name: np.zeros(
                (rows, *(0 if axis == 2 else size for axis, size in enumerate(item.shape) if axis)), np.float32
            )
            for name, item in inputs.items()
            if name.startswith("past_key_values")
        }
        found, at = [], 0
        for take in (length - 4, 2, 1, 1):
            known = {
                "input_ids": ids[:, at : at + take], "attention_mask": mask[:, : at + take],
                "position_ids": positions[:, at : at + take],
            }  # fmt: skip
            step = {name: known[name] for name in inputs if name in known}
            got = dict(zip(outputs, opened.run(None, {**step, **past}), strict=True))
            found.append(got["logits"])
            past = {name: got[name.replace("past_key_values", "present")] for name in past}
            at += take
        worst = max(worst, distance({"logits": np.concatenate(found, 1)}, {"logits": wanted}, mask))
    return near(worst, limit)


def compare_network(trial: Trial, model: Model, limit: float, *, changed: bool = False) -> float:
    """Compare a model that transformers loads with the source. changed: it must differ from it."""
    import torch

    network = load_model(model, dtype="float32")
    worst = 0.0
    for batch, wanted in zip(trial.batches, trial.expected, strict=True):
        with torch.inference_mode():
            out = network(**{name: torch.from_numpy(value) for name, value in batch.items()}, return_dict=True)
        found = {k: v.numpy() for k, v in out.items() if isinstance(v, torch.Tensor)}
        worst = max(worst, distance(found, wanted, batch.get("attention_mask")))
    if changed and worst < 1e-6:
        raise Wrong("nothing was changed")
    return near(worst, limit)


def compare_genai(trial: Trial, model: Model, limit: float) -> float:
    """Compare the logits of a prompt and of single tokens by onnxruntime-genai."""
    import onnxruntime_genai as og
    import torch

    opened = og.Model(str(model.folder))
    worst = 0.0
    for length in (7, 20):
        ids = np.random.default_rng(length).integers(4, 250, (1, length))
        parameters = og.GeneratorParams(opened)
        parameters.set_search_options(max_length=64, batch_size=1)
        generator = og.Generator(opened, parameters)
        generator.append_tokens(ids[:, :-2].astype(np.int32))
        found = [np.asarray(generator.get_output("logits"))]
        for place in (-2, -1):
            generator.append_tokens(ids[:, place : place + 1 or None].astype(np.int32))
            found.append(np.asarray(generator.get_output("logits")))
        with torch.inference_mode():
            wanted = trial.network(input_ids=torch.from_numpy(ids)).logits.numpy()
        worst = max(
            worst, distance({"logits": np.concatenate(found, 1)[..., : wanted.shape[-1]]}, {"logits": wanted}, None)
        )
    return near(worst, limit)

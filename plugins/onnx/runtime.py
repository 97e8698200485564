"""The onnx runtime: ONNX Runtime sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drupe.core.accelerators import Accelerator
from drupe.core.errors import ConfigError, EvaluationError
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Result, Runtime, Session
from drupe.core.scoring import Sequences, right_padded, scored
from drupe.plugins.onnx.adapter_weights import read_weights
from drupe.plugins.onnx.decoding import decode_steps, end_tokens, past_inputs, past_outputs, step_inputs
from drupe.plugins.onnx.extensions import register_extensions
from drupe.plugins.onnx.graphs import graph_path, unknown_operators
from drupe.plugins.onnx.providers import ProviderAbsent, make_available, with_defaults

__all__ = ["OnnxRuntime", "OnnxSession", "run_bound", "set_session_option"]

_LEVELS = {"disable": 0, "basic": 1, "extended": 2, "layout": 3, "all": 99}
_MODES = ("sequential", "parallel")
_TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(bool)": "bool",
    "tensor(int16)": "int16", "tensor(uint16)": "uint16", "tensor(string)": "str",
}  # fmt: skip


class OnnxRuntime(Runtime):
    """Options: threads, inter_op_threads, execution_mode (sequential, parallel), graph_optimization (disable, basic,
    extended, layout, all), session_config (ONNX Runtime's session config entries by name), io_bind (inputs and outputs
    are bound to the device's memory).

    What a tuning pass wrote into the model's inference_settings holds where no option says otherwise.
    """

    version = 1

    def options(self, accelerator: Accelerator, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Runtime.options."""
        known: dict[str, Any] = {
            "threads": None,
            "inter_op_threads": None,
            "execution_mode": None,
            "graph_optimization": None,
            "session_config": {},
            "io_bind": None,
        }
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ConfigError(f"onnx: unknown runtime option {', '.join(unknown)}; known: {', '.join(known)}")
        full = {**known, **options}
        if full["execution_mode"] not in (None, *_MODES):
            raise ConfigError(f"onnx: execution_mode {full['execution_mode']!r}; expected {' or '.join(_MODES)}")
        if full["graph_optimization"] not in (None, *_LEVELS):
            raise ConfigError(f"onnx: graph_optimization {full['graph_optimization']!r}; expected {', '.join(_LEVELS)}")
        return full

    def capabilities(self, model: Model) -> Sequence[str]:
        """forward; score too where the model is a decoder; generate where it takes keys and values and gives them."""
        task = model.attributes.get("task")
        if task == "text-generation-with-past":
            return ("forward", "generate", "score")
        return ("forward", "score") if task == "text-generation" else ("forward",)

    def open(self, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> OnnxSession:
        """See Runtime.open."""
        return self.open_graph(graph_path(model), model, accelerator, options)

    def open_graph(self, path: Path, model: Model, accelerator: Accelerator, options: Mapping[str, Any]) -> OnnxSession:
        """Return a session of the graph at path; what belongs to it besides is the model's."""
        import onnxruntime as ort

        full = self.options(accelerator, options)
        provider = accelerator.execution_provider or "CPUExecutionProvider"
        try:
            device = make_available(provider, accelerator.device)
        except ProviderAbsent as error:
            raise EvaluationError(str(error)) from error
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        register_extensions(model.attributes, settings)
        stored: Mapping[str, Any] = (model.attributes.get("inference_settings") or {}).get("session_options") or {}
        for name, value in stored.items():
            set_session_option(settings, name, value)
        if full["threads"] and "intra_op_num_threads" not in stored:
            settings.intra_op_num_threads = int(full["threads"])
        if full["inter_op_threads"]:
            settings.inter_op_num_threads = int(full["inter_op_threads"])
        if full["execution_mode"]:
            settings.execution_mode = ort.ExecutionMode(_MODES.index(full["execution_mode"]))
        if full["graph_optimization"]:
            settings.graph_optimization_level = ort.GraphOptimizationLevel(_LEVELS[full["graph_optimization"]])
        for name, value in full["session_config"].items():
            settings.add_session_config_entry(str(name), str(value))
        constants = _weights_beside(model, "constant_inputs")
        outside = _weights_beside(model, "external_initializers")
        if outside:
            values = [ort.OrtValue.ortvalue_from_numpy(value) for value in outside.values()]
            settings.add_external_initializers(list(outside), values)
        try:
            provider_options = with_defaults(provider, accelerator.provider_options, accelerator.device)
            if device is not None:
                settings.add_provider_for_devices([device], provider_options)
            providers = [(provider, provider_options)] if device is None else None
            session = ort.InferenceSession(str(path), settings, providers=providers)
        except Exception as error:
            import onnx
            from google.protobuf.message import DecodeError

            try:
                unknown = unknown_operators(onnx.load(str(path), load_external_data=False))
            except (OSError, DecodeError):
                unknown = []
            which = "".join(f"; node {node!r} has the operator {operator}" for operator, node in unknown[:1])
            raise EvaluationError(f"ONNX Runtime can't load {path.name}: {error}{which}") from error
        bound = full["io_bind"]
        if bound is None:
            bound = bool((model.attributes.get("inference_settings") or {}).get("io_bind"))
        return OnnxSession(session, model.folder, bound=bound, constants=constants)


def _weights_beside(model: Model, attribute: str) -> dict[str, np.ndarray]:
    """Return the tensors of the file that an attribute of the model names; {} where it names none."""
    name = model.attributes.get(attribute)
    if not name:
        return {}
    path = model.folder / str(name)
    if not path.is_file():
        raise EvaluationError(f"the model's {attribute} are in {name}, which is not in its folder")
    return read_weights(path)


def set_session_option(settings: Any, name: str, value: Any) -> None:
    """Set a session option by the name that ONNX Runtime or Olive gives it."""
    import onnxruntime as ort

    if name == "execution_mode":
        value = ort.ExecutionMode(int(value))
    elif name == "graph_optimization_level":
        value = ort.GraphOptimizationLevel(int(value))
    elif name == "extra_session_config":
        for key, entry in dict(value).items():
            settings.add_session_config_entry(str(key), str(entry))
        return
    if not hasattr(settings, name):
        raise EvaluationError(f"the model's inference_settings name {name}, which ONNX Runtime does not have")
    setattr(settings, name, value)


def run_bound(session: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a session with inputs and outputs bound to memory, and return the outputs."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    values: list[np.ndarray] = binding.copy_outputs_to_cpu()
    return values


def _run_with_broken_text(session: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a session and return the outputs; texts that are no UTF-8, such as one that ends within a character, are each
    the replacement character."""
    import onnxruntime as ort

    given = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
    values = []
    for output in session.run_with_ort_values(None, given):
        try:
            values.append(output.numpy())
        except UnicodeDecodeError:
            values.append(np.full(output.shape(), "\ufffd", dtype=object))
    return values


class OnnxSession(Session):
    """An inference session."""

    def __init__(
        self, session: Any, folder: Path, *, bound: bool = False, constants: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._session = session
        self._constants = dict(constants or {})
        self._bound = bound
        self._folder = folder
        self._inputs = {item.name: item for item in session.get_inputs() if item.name not in self._constants}
        self._outputs = [item.name for item in session.get_outputs()]
        self._encoder: Any = None

    @property
    def output_names(self) -> Sequence[str]:
        """The graph's outputs in order."""
        return tuple(self._outputs)

    def forward(self, batch: Mapping[str, np.ndarray]) -> Result:
        """See Session.forward."""
        missing = [name for name in self._inputs if name not in batch]
        unknown = [name for name in batch if name not in self._inputs]
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, which the graph lacks"
            raise EvaluationError(f"the batch {what}; the graph takes {', '.join(self._inputs)}")
        feeds = {
            name: np.ascontiguousarray(batch[name], dtype=_TYPES.get(item.type)) for name, item in self._inputs.items()
        }
        feeds |= self._constants
        try:
            try:
                values = run_bound(self._session, feeds) if self._bound else self._session.run(None, feeds)
            except UnicodeDecodeError:
                values = _run_with_broken_text(self._session, feeds)
        except Exception as error:
            shapes = {name: value.shape for name, value in feeds.items()}
            raise EvaluationError(f"ONNX Runtime failed on inputs of shapes {shapes}: {error}") from error
        return Result(dict(zip(self._outputs, values, strict=True)))

    def generate(self, prompt: str | np.ndarray, options: GenerateOptions) -> Result:
        """See Session.generate. For graphs that take keys and values and give them."""
        ids = self.tokenize(prompt) if isinstance(prompt, str) else np.asarray(prompt, dtype=np.int64)
        shapes = self.input_shapes()
        known = {*step_inputs(ids, 0), *past_outputs(list(past_inputs(shapes)), self._outputs)}
        if [name for name in shapes if name not in known] or not past_inputs(shapes) or "logits" not in self._outputs:
            raise EvaluationError(f"the graph can't generate step by step: it takes {', '.join(shapes)}")
        if not len(ids):
            raise EvaluationError("the prompt has no tokens; there is nothing to go on from")
        encoder = self._tokenizer()
        ends = end_tokens(self._folder, encoder.token_to_id if encoder is not None else lambda text: None)

        def text_of(tokens: Sequence[int]) -> str:
            return str(encoder.decode(list(tokens), skip_special_tokens=True)) if encoder is not None else ""

        def is_end(tokens: Sequence[int]) -> bool:
            stops = [stop for stop in options.stop if stop]
            return tokens[-1] in ends or (bool(stops) and any(stop in text_of(tokens) for stop in stops))

        tokens, seconds = decode_steps(
            lambda batch: self.forward(batch).outputs, shapes, self._outputs, ids, options, is_end
        )
        text = text_of(tokens)
        for stop in filter(None, options.stop):
            text = text.split(stop, 1)[0]
        return Result(
            {
                "text": text,
                "token_ids": np.asarray(tokens, dtype=np.int64),
                "token_seconds": np.asarray(seconds, dtype=np.float64),
            }
        )

    def score(self, input_ids: np.ndarray, labels: np.ndarray) -> Result:
        """See Session.score. The whole sequence goes in at once, with no keys and values before it."""
        return self.score_batch([(np.asarray(input_ids), labels)])[0]

    def score_batch(self, sequences: Sequences) -> Sequence[Result]:
        """See Session.score_batch. A graph of a fixed batch takes them one by one."""
        shapes = self.input_shapes()
        if len(sequences) > 1 and isinstance(shapes.get("input_ids", ((1,), ""))[0][0], int):
            return [self.score(ids, labels) for ids, labels in sequences]
        ids, mask = right_padded(sequences)
        given = {**step_inputs(ids[0], 0), **past_inputs(shapes, len(ids)), "input_ids": ids, "attention_mask": mask}
        given["position_ids"] = np.broadcast_to(given["position_ids"], ids.shape)
        extra = [name for name in self._inputs if name not in given]
        if extra or "logits" not in self._outputs:
            raise EvaluationError(f"the graph can't score whole sequences: it takes {', '.join(self._inputs)}")
        logits = self.forward({name: given[name] for name in self._inputs}).outputs["logits"]
        return [Result(scored(row, labels)) for row, (_, labels) in zip(logits, sequences, strict=True)]

    def tokenize(self, text: str, *, special_tokens: bool = True) -> np.ndarray:
        """See Session.tokenize. Raises EvaluationError where no tokenizer.json lies beside the graph."""
        encoder = self._tokenizer()
        if encoder is None:
            raise EvaluationError("no tokenizer.json lies beside the graph, so text can't be given to it")
        return np.asarray(encoder.encode(text, add_special_tokens=special_tokens).ids, dtype=np.int64)

    def _tokenizer(self) -> Any:
        path = self._folder / "tokenizer.json"
        if self._encoder is None and path.is_file():
            from tokenizers import Tokenizer

            self._encoder = Tokenizer.from_file(str(path))
            self._encoder.no_padding()
            self._encoder.no_truncation()
        return self._encoder

    def input_shapes(self) -> Mapping[str, tuple[tuple[int | str, ...], str]]:
        """See Session.input_shapes."""
        return {
            name: (
                tuple(
                    size if isinstance(size, int) else str(size or f"axis_{axis}")
                    for axis, size in enumerate(item.shape)
                ),
                _TYPES.get(item.type, "float32"),
            )
            for name, item in self._inputs.items()
        }

    def close(self) -> None:
        """See Session.close."""
        self._session = None

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
from drupe.plugins.onnx.ort_session import LEVELS, MODES, make_session, run_session
from drupe.plugins.onnx.providers import ProviderAbsent, make_available, with_defaults

__all__ = ["OnnxRuntime", "OnnxSession", "cant_load"]

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

    def options(self, accelerator: Accelerator, options: Mapping[str, Any]) -> dict[str, Any]:
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
        if full["execution_mode"] not in (None, *MODES):
            raise ConfigError(f"onnx: execution_mode {full['execution_mode']!r}; expected {' or '.join(MODES)}")
        if full["graph_optimization"] not in (None, *LEVELS):
            raise ConfigError(f"onnx: graph_optimization {full['graph_optimization']!r}; expected {', '.join(LEVELS)}")
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
        inference_settings = model.attributes.get("inference_settings") or {}
        full = self.options(accelerator, options)
        bound = full.pop("io_bind")
        if bound is None:
            bound = bool(inference_settings.get("io_bind"))
        provider = accelerator.execution_provider or "CPUExecutionProvider"
        request = {
            **full,
            "path": str(path),
            "provider": provider,
            "provider_options": dict(with_defaults(provider, accelerator.provider_options, accelerator.device)),
            "device": accelerator.device,
            "stored": dict(inference_settings.get("session_options") or {}),
            "extensions": bool(model.attributes.get("use_ort_extensions")),
        }
        session = self.inference(model, request, _weights_beside(model, "external_initializers"))
        constants = _weights_beside(model, "constant_inputs")
        return self.session_class(session, model.folder, bound=bound, constants=constants)

    @property
    def session_class(self) -> type[OnnxSession]:
        """What the runtime's sessions are."""
        return OnnxSession

    def inference(self, model: Model, request: dict[str, Any], initializers: dict[str, np.ndarray]) -> Any:
        """Return what runs the graph as an InferenceSession does; see `make_session`. Raises EvaluationError."""
        import onnxruntime as ort

        try:
            device = make_available(request["provider"], request["device"])
        except ProviderAbsent as error:
            raise EvaluationError(str(error)) from error
        settings = ort.SessionOptions()
        register_extensions(model.attributes, settings)
        try:
            return make_session(request, initializers, settings, device)
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        except Exception as error:
            raise cant_load(Path(request["path"]), error) from error


def cant_load(path: Path, error: Exception | str) -> EvaluationError:
    """Return the error for a graph that ONNX Runtime does not load, with an operator that nobody knows."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        unknown = unknown_operators(onnx.load(str(path), load_external_data=False))
    except (OSError, DecodeError):
        unknown = []
    which = "".join(f"; node {node!r} has the operator {operator}" for operator, node in unknown[:1])
    return EvaluationError(f"ONNX Runtime can't load {path.name}: {error}{which}")


def _weights_beside(model: Model, attribute: str) -> dict[str, np.ndarray]:
    """Return the tensors of the file that an attribute of the model names; {} where it names none."""
    name = model.attributes.get(attribute)
    if not name:
        return {}
    path = model.folder / str(name)
    if not path.is_file():
        raise EvaluationError(f"the model's {attribute} are in {name}, which is not in its folder")
    return read_weights(path)


class OnnxSession(Session):
    """An inference session."""

    framework = "ONNX"

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
        # A number stays one: ascontiguousarray would make a list of it.
        feeds = {
            name: np.asarray(batch[name], dtype=_TYPES.get(item.type), order="C") for name, item in self._inputs.items()
        }
        feeds |= self._constants
        try:
            values = self.run(feeds)
        except Exception as error:
            shapes = {name: value.shape for name, value in feeds.items()}
            raise EvaluationError(f"ONNX Runtime failed on inputs of shapes {shapes}: {error}") from error
        return Result(dict(zip(self._outputs, values, strict=True)))

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of the graph, in order."""
        return run_session(self._session, feeds, bound=self._bound)

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
            if tokens[-1] in ends or not options.stop:
                return tokens[-1] in ends
            text = text_of(tokens)
            return options.cut(text) != text

        tokens, seconds = decode_steps(
            lambda batch: self.forward(batch).outputs, shapes, self._outputs, ids, options, is_end
        )
        text = options.cut(text_of(tokens))
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

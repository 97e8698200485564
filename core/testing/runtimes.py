"""What every runtime must do, as a class of tests that an author subclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.digests import canonical_json
from drupe.core.errors import ConfigError, DrupeError
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Runtime, Session
from drupe.core.specs import CAPABILITIES, RuntimeSpec
from drupe.core.testing.base import Contract

__all__ = ["RuntimeContract"]


class RuntimeContract(Contract):
    """Subclass it as `TestMyRuntime(RuntimeContract)`, set `name`, and override the fixture `model`.

    tolerance: how much outputs of two equal calls may differ.
    """

    hook: ClassVar[str] = "drupe_runtimes"
    tolerance: ClassVar[float] = 1e-5

    # Fixtures to override

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        """A small model of a kind that the runtime opens, staged in a folder. To be overridden."""
        pytest.fail(f"override the fixture `model` of {type(self).__name__}; drupe.testing has tiny models")

    @pytest.fixture
    def accelerator(self, registered: Any) -> Accelerator:
        """Where the model is opened: the CPU where the spec has it."""
        devices = sorted(cast(RuntimeSpec, registered.spec).accelerators)
        return Accelerator("cpu" if "cpu" in devices or not devices else devices[0])

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """Options to open it with."""
        return {}

    @pytest.fixture
    def session(
        self, subject: Runtime, model: Model, accelerator: Accelerator, options: dict[str, Any]
    ) -> Iterator[Session]:
        """The model, opened."""
        with subject.open(model, accelerator, subject.options(accelerator, {"threads": 1, **options})) as session:
            yield session

    @pytest.fixture
    def batch(self, session: Session) -> Mapping[str, np.ndarray]:
        """A batch of two for `forward`; by default ones of the shapes that the session tells, named axes being 2."""
        return {
            name: np.ones([2 if isinstance(axis, str) else axis for axis in shape], dtype=np.dtype(dtype))
            for name, (shape, dtype) in session.input_shapes().items()
        }

    def needs(self, subject: Runtime, model: Model, capability: str) -> None:
        """Skip the case unless the runtime can do that with this model."""
        if capability not in subject.capabilities(model):
            pytest.skip(f"it can't {capability} this model")

    # Cases

    def test_it_is_a_runtime(self, subject: Any) -> None:
        """It derives from Runtime, opens some kind, and can do something with it."""
        assert isinstance(subject, Runtime)
        assert isinstance(subject.version, int)
        spec = subject.spec
        assert spec.kinds, "the spec names no model kind"
        assert spec.capabilities, f"the spec names no capability; there are {', '.join(CAPABILITIES)}"

    def test_capabilities_are_those_of_the_spec(self, subject: Runtime, model: Model) -> None:
        """Of one model it may do less than the spec says, never more."""
        assert set(subject.capabilities(model)) <= set(subject.spec.capabilities)
        assert subject.capabilities(model), "it can do nothing with the model under test"

    def test_what_opening_a_model_needs_can_be_read(self, subject: Runtime, model: Model) -> None:
        """Requirements are PEP 508, and told of what is known of a model before it is made."""
        from packaging.requirements import Requirement

        from drupe.core.requirements import alternatives

        for text in subject.requirements(model.info):
            assert all(Requirement(part).name for part in alternatives(text))

    def test_options_are_json_and_complete(
        self, subject: Runtime, accelerator: Accelerator, options: dict[str, Any]
    ) -> None:
        """They are part of measurement keys; completed options are complete."""
        full = subject.options(accelerator, options)
        canonical_json(dict(full))
        assert dict(subject.options(accelerator, full)) == dict(full)

    def test_an_unknown_option_is_refused(self, subject: Runtime, accelerator: Accelerator) -> None:
        """Nothing that a user writes is ignored."""
        with pytest.raises(ConfigError, match="no_such_option"):
            subject.options(accelerator, {"no_such_option": 1})

    def test_a_damaged_model_is_one_clear_error(
        self, subject: Runtime, model: Model, accelerator: Accelerator, tmp_path: Path
    ) -> None:
        """Files of nonsense raise an error of Drupe's, not the library's own."""
        folder = tmp_path / "damaged"
        for name in model.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"nonsense")
        damaged = Model.from_dir(model.kind, folder, model.attributes)
        with pytest.raises(DrupeError):
            subject.open(damaged, accelerator, subject.options(accelerator, {"threads": 1}))

    def test_forward_gives_arrays(
        self, subject: Runtime, model: Model, session: Session, request: pytest.FixtureRequest
    ) -> None:
        """numpy arrays by output name, the batch along the first axis, and the same for the same batch."""
        self.needs(subject, model, "forward")
        batch: Mapping[str, np.ndarray] = request.getfixturevalue("batch")
        first, second = session.forward(batch), session.forward(batch)
        size = next(iter(batch.values())).shape[0]
        assert first.outputs, "no outputs"
        for name, value in first.outputs.items():
            assert isinstance(value, np.ndarray), f"{name} is a {type(value).__name__}; sessions give numpy arrays"
            assert value.shape[:1] == (size,), f"{name} has shape {value.shape} for a batch of {size}"
            np.testing.assert_allclose(value, second.outputs[name], atol=self.tolerance)
        assert first.device_seconds is None or first.device_seconds >= 0

    def test_forward_refuses_an_unknown_input(
        self, subject: Runtime, model: Model, session: Session, request: pytest.FixtureRequest
    ) -> None:
        """By an error of Drupe's that names it."""
        self.needs(subject, model, "forward")
        batch: Mapping[str, np.ndarray] = request.getfixturevalue("batch")
        with pytest.raises(DrupeError, match="no_such_input"):
            session.forward({**batch, "no_such_input": np.ones((2, 1), dtype=np.float32)})

    def test_generate_keeps_to_its_options(self, subject: Runtime, model: Model, session: Session) -> None:
        """No more tokens than asked for, a time for each, greedy twice the same."""
        self.needs(subject, model, "generate")
        options = GenerateOptions(max_new_tokens=5)
        first, second = session.generate("ab", options).outputs, session.generate("ab", options).outputs
        assert isinstance(first["text"], str)
        assert first["token_ids"].dtype == np.int64
        assert len(first["token_ids"]) <= 5
        assert len(first["token_seconds"]) == len(first["token_ids"])
        assert (np.diff(first["token_seconds"]) >= 0).all()
        assert first["token_ids"].tolist() == second["token_ids"].tolist()

    def test_generate_takes_token_ids(self, subject: Runtime, model: Model, session: Session) -> None:
        """A prompt of token ids gives what its text gives."""
        self.needs(subject, model, "generate")
        options = GenerateOptions(max_new_tokens=3)
        by_text = session.generate("ab", options).outputs
        by_ids = session.generate(session.tokenize("ab"), options).outputs
        assert by_ids["token_ids"].tolist() == by_text["token_ids"].tolist()

    def test_score_gives_log_probabilities(self, subject: Runtime, model: Model, session: Session) -> None:
        """One per position, at most 0, NaN where nothing is scored, the first position always."""
        self.needs(subject, model, "score")
        ids = session.tokenize("abcd")
        labels = ids.copy()
        labels[1] = -100
        scores = session.score(ids, labels).outputs["logprobs"]
        assert scores.shape == ids.shape
        assert np.isnan(scores[:2]).all()
        assert (scores[2:] <= 0).all()

    def test_scores_are_of_the_tokens_before(self, subject: Runtime, model: Model, session: Session) -> None:
        """What comes later changes nothing: position i sees the input before i only."""
        self.needs(subject, model, "score")
        ids = session.tokenize("abcdef")
        whole = session.score(ids, ids).outputs["logprobs"]
        part = session.score(ids[:4], ids[:4]).outputs["logprobs"]
        np.testing.assert_allclose(part[1:], whole[1:4], atol=max(self.tolerance, 1e-4))

    def test_a_batch_is_scored_as_each_sequence_alone(self, subject: Runtime, model: Model, session: Session) -> None:
        """Sequences of several lengths, side by side: each gets what it gets alone."""
        self.needs(subject, model, "score")
        tokens = [session.tokenize(text) for text in ("abcdef", "abc", "dcba")]
        sequences = [(ids, np.where(np.arange(len(ids)) < first, -100, ids)) for first, ids in enumerate(tokens)]
        together = session.score_batch(sequences)
        assert len(together) == len(sequences)
        for found, (ids, labels) in zip(together, sequences, strict=True):
            alone = session.score(ids, labels).outputs
            np.testing.assert_allclose(found.outputs["logprobs"], alone["logprobs"], atol=max(self.tolerance, 1e-4))
            if "greedy" in alone:
                assert found.outputs["greedy"].tolist() == alone["greedy"].tolist()

    def test_two_sessions_stand_side_by_side(
        self, subject: Runtime, model: Model, accelerator: Accelerator, session: Session
    ) -> None:
        """Timed metrics interleave a candidate with its baseline; closing one leaves the other."""
        other = subject.open(model, accelerator, subject.options(accelerator, {"threads": 1}))
        other.close()
        if "forward" in subject.capabilities(model):
            session.input_shapes()

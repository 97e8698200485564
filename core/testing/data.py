"""What every data container must do, as a class of tests that an author subclasses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from drupe.core.data import DataContainer, Sample
from drupe.core.digests import canonical_json
from drupe.core.errors import Fault
from drupe.core.model import Model
from drupe.core.testing.base import ConfigContract
from drupe.core.testing.contexts import make_context

__all__ = ["DataContract"]


class DataContract(ConfigContract):
    """Subclass it as `TestMyContainer(DataContract)`, set `name`, and override `config_values`."""

    hook: ClassVar[str] = "drupe_data_containers"

    # Fixtures to override

    @pytest.fixture
    def workflow_dir(self, tmp_path: Path) -> Path:
        """The folder against which the config's paths resolve; put files of data here."""
        return tmp_path

    @pytest.fixture
    def model(self) -> Model | None:
        """The model whose tokenizer or processor prepares the samples, where one is needed."""
        return None

    @pytest.fixture
    def changed(self, config_values: dict[str, Any], workflow_dir: Path) -> dict[str, Any] | None:
        """A config of other data; it may write files beside the first ones. None leaves the case out."""
        return None

    @pytest.fixture
    def samples(
        self, subject: DataContainer, config: Any, model: Model | None, workflow_dir: Path, tmp_path: Path
    ) -> Sequence[Sample]:
        """What the container gives."""
        return self.load(subject, config, model, workflow_dir, tmp_path / "first")

    def load(
        self, subject: DataContainer, config: Any, model: Model | None, workflow_dir: Path, folder: Path
    ) -> Sequence[Sample]:
        """Load with a fresh context."""
        return list(subject.load(config, model, make_context(folder, workflow_dir=workflow_dir)))

    # Cases

    def test_it_is_a_container(self, subject: Any) -> None:
        """It derives from DataContainer and has a version that its author raises."""
        assert isinstance(subject, DataContainer)
        assert isinstance(subject.version, int)

    def test_good_data_has_no_faults(self, subject: DataContainer, config: Any, workflow_dir: Path) -> None:
        """`check` finds nothing wrong with the config under test."""
        assert list(subject.check(config, workflow_dir)) == []

    def test_check_gives_faults_and_never_raises(self, subject: DataContainer, config: Any, tmp_path: Path) -> None:
        """In a folder where nothing is, what is absent is told as faults."""
        empty = tmp_path / "empty"
        empty.mkdir()
        assert all(isinstance(fault, Fault) for fault in subject.check(config, empty))

    def test_identity_is_stable_json(self, subject: DataContainer, config: Any, workflow_dir: Path) -> None:
        """It is part of step keys: JSON data, the same each time, and free of this machine's folders."""
        first, second = (canonical_json(subject.identity(config, workflow_dir)) for _ in range(2))
        assert first == second
        assert str(workflow_dir) not in first, "the identity holds an absolute path; use the files' digests"

    def test_identity_follows_the_data(
        self, subject: DataContainer, config: Any, changed: dict[str, Any] | None, workflow_dir: Path
    ) -> None:
        """Other data has another identity."""
        if changed is None:
            pytest.skip("override the fixture `changed` to check this")
        other = type(config).model_validate(changed)
        assert canonical_json(subject.identity(config, workflow_dir)) != canonical_json(
            subject.identity(other, workflow_dir)
        )

    def test_it_gives_samples(self, samples: Sequence[Sample]) -> None:
        """At least one; inputs are arrays or texts by name."""
        assert samples, "no samples"
        for sample in samples:
            assert isinstance(sample, Sample)
            assert sample.inputs, f"sample {sample.id} has no inputs"
            for name, value in sample.inputs.items():
                assert isinstance(name, str)
                assert isinstance(value, (np.ndarray, str)), (
                    f"{name} of {sample.id} is a {type(value).__name__}; samples hold numpy arrays and texts"
                )

    def test_ids_are_unique_and_stable(
        self,
        subject: DataContainer,
        samples: Sequence[Sample],
        config: Any,
        model: Model | None,
        workflow_dir: Path,
        tmp_path: Path,
    ) -> None:
        """Loaded again, the same samples have the same ids: measurements of two models are paired by them."""
        ids = [sample.id for sample in samples]
        assert len(set(ids)) == len(ids), "two samples have the same id"
        again = self.load(subject, config, model, workflow_dir, tmp_path / "second")
        assert [sample.id for sample in again] == ids
        assert [sample.content_key for sample in again] == [sample.content_key for sample in samples]

    def test_content_keys_follow_the_content(self, samples: Sequence[Sample]) -> None:
        """Every sample has one. Splits and leak checks go by it: equal inputs and targets have equal keys."""
        keys: dict[str, str] = {}
        for sample in samples:
            assert sample.content_key, f"sample {sample.id} has no content_key"
            inputs = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in sorted(sample.inputs.items())}
            content = repr((inputs, sample.target))
            assert keys.setdefault(content, sample.content_key) == sample.content_key, (
                f"sample {sample.id} has the content of another one and another content_key"
            )

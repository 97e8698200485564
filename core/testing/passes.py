"""What every pass must do, as a class of tests that an author subclasses."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from drupe.core.accelerators import Accelerator
from drupe.core.context import JobContext
from drupe.core.digests import canonical_json
from drupe.core.errors import ConfigError, Interrupted
from drupe.core.model import Model, ModelInfo
from drupe.core.passes import Pass
from drupe.core.registry import Registered
from drupe.core.specs import PassSpec
from drupe.core.testing.base import ConfigContract
from drupe.core.testing.contexts import make_context

__all__ = ["Made", "PassContract"]


@dataclass(frozen=True)
class Made:
    """One run of the pass. input_after: the input's files when it was over. strays: what lay in the working directory.
    places: folders of this machine that nothing of the result may name."""

    model: Model
    input_after: Mapping[str, str]
    context: JobContext
    result: Model
    strays: tuple[str, ...]
    places: tuple[str, ...]


_RUNS = pytest.StashKey[dict[str, Made]]()


class PassContract(ConfigContract):
    """Subclass it as `TestMyPass(PassContract)`, set `name`, and override the fixture `model`.

    The cases that only look at what came out look at one run.

    A pass whose spec says that it is not deterministic is not asked for equal files; say why beside the spec: without
    them nothing after the pass is found in the store when it runs again.
    """

    hook: ClassVar[str] = "drupe_passes"

    # Fixtures to override

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        """A small input model, staged in a folder. To be overridden; `drupe.testing` makes some on the spot."""
        pytest.fail(f"override the fixture `model` of {type(self).__name__}; drupe.testing has tiny models")

    @pytest.fixture
    def accelerator(self, registered: Registered) -> Accelerator:
        """What the result is for: the CPU, unless the spec says that it is for others only."""
        devices = sorted(cast(PassSpec, registered.spec).accelerators)
        return Accelerator("cpu" if "cpu" in devices or not devices else devices[0])

    @pytest.fixture
    def data(self) -> dict[str, Any]:
        """Samples (or a function from the model to samples) by the data config that `config_values` names."""
        return {}

    def context(self, folder: Path, accelerator: Accelerator, data: dict[str, Any], **fields: Any) -> JobContext:
        """A fresh context below `folder`."""
        return make_context(folder, accelerator=accelerator, data=data, **fields)

    @pytest.fixture
    def made(
        self,
        request: pytest.FixtureRequest,
        subject: Pass,
        model: Model,
        config: Any,
        accelerator: Accelerator,
        data: dict[str, Any],
        tmp_path: Path,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Callable[[], Made]:
        """Gives the run that the cases share: the first one that asks makes it, in an empty working directory."""
        runs: dict[str, Made] = request.node.parent.stash.setdefault(_RUNS, {})
        # A fixture that is parametrized gives the class several sets of cases.
        which = request.node.callspec.id if hasattr(request.node, "callspec") else ""

        def make() -> Made:
            # pytest may be told to remove a case's folder, and the model in it, as soon as the case is over.
            if which not in runs or not runs[which].model.folder.is_dir():
                folder, empty = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("empty")
                context = self.context(folder, accelerator, data)
                with contextlib.chdir(empty):
                    result = subject(model, config, context)
                runs[which] = Made(
                    model=model,
                    input_after=Model.from_dir(model.kind, model.folder).files,
                    context=context,
                    result=result,
                    strays=tuple(os.listdir(empty)),  # noqa: PTH208
                    places=(str(tmp_path), str(folder), str(empty), str(model.folder)),
                )
            return runs[which]

        return make

    # Cases: before it runs

    def test_it_is_a_pass(self, subject: Any) -> None:
        """It derives from Pass, and its version is a number that its author raises."""
        assert isinstance(subject, Pass)
        assert isinstance(subject.version, int)
        assert type(subject).__doc__, f"{type(subject).__name__} has no docstring; `drupe passes NAME` shows it"

    def test_plan_is_pure(self, subject: Pass, model: Model, config: Any, accelerator: Accelerator) -> None:
        """Asked twice it says the same, and what it was given is unchanged."""
        info = model.info
        before = canonical_json(dict(info.attributes))
        first, second = (subject.plan(info, config, accelerator) for _ in range(2))
        assert isinstance(first, ModelInfo)
        assert first == second
        assert canonical_json(dict(info.attributes)) == before

    def test_plan_refuses_other_kinds(self, subject: Pass, config: Any, accelerator: Accelerator) -> None:
        """A model of a kind that it doesn't accept is a ConfigError that names the pass, before work starts."""
        assert isinstance(subject.spec, PassSpec)
        if not subject.spec.accepts:
            pytest.skip("it accepts every kind")
        with pytest.raises(ConfigError, match=subject.spec.name):
            subject.plan(ModelInfo("no-such-kind"), config, accelerator)

    def test_the_rehearsal_config_is_valid(self, subject: Pass, config: Any) -> None:
        """`rehearsal` gives a config of the same type."""
        less = subject.rehearsal(config)
        assert type(less) is type(config)
        assert type(config).model_validate_json(less.model_dump_json()) == less

    # Cases: what it does

    def test_it_keeps_its_promise(
        self, subject: Pass, made: Callable[[], Made], config: Any, accelerator: Accelerator
    ) -> None:
        """The result has the kind and the attributes that `plan` announced, and files that are there."""
        run = made()
        promised = subject.plan(run.model.info, config, accelerator)
        result = run.result
        assert result.kind == promised.kind
        given = dict(result.attributes)
        broken = {key: value for key, value in promised.attributes.items() if given.get(key) != value}
        assert not broken, f"plan announced {broken}, the result has { ({key: given.get(key) for key in broken}) }"
        for name in result.files:
            assert ".." not in Path(name).parts and not Path(name).is_absolute()
        output = run.context.output_dir
        for path in output.rglob("*"):
            name = path.relative_to(output).as_posix()
            assert path.is_dir() or name in result.files, f"{name} was written and is no file of the result"

    def test_its_input_stays_as_it_was(self, made: Callable[[], Made]) -> None:
        """A pass that needs to change its input copies it first: other steps share the files."""
        run = made()
        assert dict(run.input_after) == dict(run.model.files)

    def test_equal_work_gives_equal_models(
        self,
        subject: Pass,
        registered: Registered,
        made: Callable[[], Made],
        config: Any,
        accelerator: Accelerator,
        data: dict[str, Any],
        tmp_path: Path,
    ) -> None:
        """Run twice, in other folders, the digests are the same."""
        if not cast(PassSpec, registered.spec).deterministic:
            pytest.skip("not deterministic, as its spec says")
        run = made()
        results = [run.result, subject(run.model, config, self.context(tmp_path / "b/deeper", accelerator, data))]
        different = [name for name in results[0].files if results[0].files[name] != results[1].files.get(name)]
        assert not different, f"these files differ between two equal runs: {', '.join(different)}"
        assert results[0].digest == results[1].digest

    def test_the_result_knows_nothing_of_its_place(self, made: Callable[[], Made]) -> None:
        """No folder of this machine and no host name in attributes or files: equal work must give equal digests."""
        run = made()
        host = socket.gethostname()
        texts = {"its attributes": canonical_json(dict(run.result.attributes)).encode()}
        texts |= {p.name: p.read_bytes() for p in run.context.output_dir.rglob("*") if p.is_file()}
        for where, content in texts.items():
            for place in (*run.places, *([host] if len(host) > 8 else [])):
                assert place.encode() not in content, f"{where} holds {place!r}"

    def test_it_writes_nowhere_else(self, made: Callable[[], Made]) -> None:
        """Below its output and checkpoint folders only; the working directory stays empty."""
        assert made().strays == ()

    def test_it_can_be_cancelled(
        self, subject: Pass, model: Model, config: Any, accelerator: Accelerator, data: dict[str, Any], tmp_path: Path
    ) -> None:
        """Asked to stop it raises Interrupted, or is quick enough to end with its result."""
        context = self.context(tmp_path / "run", accelerator, data, is_cancelled=lambda: True)
        try:
            result = subject(model, config, context)
        except Interrupted:
            return
        assert isinstance(result, Model)

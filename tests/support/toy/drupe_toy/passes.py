"""Passes on texts. Each run appends a line to the file that DRUPE_TOY_LOG names, so that tests can count runs."""

import errno
import os
import time

from pydantic import Field

from drupe import Choice, DataRef, HostError, Model, Pass, PassConfig, searchable


def note(line):
    log = os.environ.get("DRUPE_TOY_LOG")
    if log:
        with open(log, "a") as handle:  # noqa: PTH123
            handle.write(line + "\n")


class AppendConfig(PassConfig):
    text: str = searchable("!", Choice("!", "?"), doc="What to append.")
    times: int = Field(1, ge=1)
    needs: str = Field("", description="What opening the result needs.")


class Append(Pass):
    Config = AppendConfig

    def plan(self, info, config, accelerator):
        planned = super().plan(info, config, accelerator)
        return planned.with_(needs=config.needs) if config.needs else planned

    def run(self, model, config, context):
        note(f"Append {config.text} {config.times}")
        text = (model.folder / "text.txt").read_text() + config.text * config.times
        (context.output_dir / "text.txt").write_text(text)
        return Model.from_dir("text", context.output_dir)


class LearnConfig(PassConfig):
    train_data_config: DataRef
    times: int = Field(1, ge=1)


class Learn(Pass):
    Config = LearnConfig

    def run(self, model, config, context):
        context.data(config.train_data_config, model=model, part="train")
        (context.output_dir / "text.txt").write_text((model.folder / "text.txt").read_text() + "l" * config.times)
        return Model.from_dir("text", context.output_dir)


class SleepyConfig(PassConfig):
    steps: int = 10
    seconds: float = 0.1


class Sleepy(Pass):
    """Works in steps, and goes on after the last one that it finished. In its fifth step it waits while there is a file
    that DRUPE_TOY_HOLD names, so that a test can have it there."""

    Config = SleepyConfig

    def run(self, model, config, context):
        state = context.checkpoint_dir / "step"
        done = int(state.read_text()) if state.exists() else 0
        for step in range(done, config.steps):
            note(f"Sleepy {step}")
            time.sleep(config.seconds)
            while step == 4 and os.path.exists(os.environ.get("DRUPE_TOY_HOLD", "")):  # noqa: PTH110
                time.sleep(0.02)
            partial = state.with_name("step.part")
            partial.write_text(str(step + 1))
            partial.replace(state)
            context.progress(step + 1, config.steps, "napping")
        (context.output_dir / "text.txt").write_text((model.folder / "text.txt").read_text() + "z")
        return Model.from_dir("text", context.output_dir)


class RaisesConfig(PassConfig):
    message: str = "the toy is broken"
    fail: bool = True


class Raises(Pass):
    Config = RaisesConfig

    def run(self, model, config, context):
        note("Raises")
        if config.fail:
            raise RuntimeError(config.message)
        (context.output_dir / "text.txt").write_text((model.folder / "text.txt").read_text() + "r")
        return Model.from_dir("text", context.output_dir)


class Dies(Pass):
    def run(self, model, config, context):
        note("Dies")
        if not os.path.exists(os.environ.get("DRUPE_TOY_SPACE", "")):  # noqa: PTH110
            os.kill(os.getpid(), 9)
        (context.output_dir / "text.txt").write_text((model.folder / "text.txt").read_text() + "d")
        return Model.from_dir("text", context.output_dir)


class UnluckyConfig(PassConfig):
    fatal: bool = True


class Unlucky(Pass):
    """Finds its machine unfit at once, until there is space."""

    Config = UnluckyConfig

    def run(self, model, config, context):
        note(f"Unlucky {config.fatal}")
        if config.fatal and not os.path.exists(os.environ.get("DRUPE_TOY_SPACE", "")):  # noqa: PTH110
            raise HostError("the board is gone", retry=False)
        (context.output_dir / "text.txt").write_text((model.folder / "text.txt").read_text() + "u" * (1 + config.fatal))
        return Model.from_dir("text", context.output_dir)


class ChangesInput(Pass):
    def run(self, model, config, context):
        path = model.folder / "text.txt"
        path.chmod(0o644)
        path.write_text("changed")
        (context.output_dir / "text.txt").write_text("made")
        return Model.from_dir("text", context.output_dir)


class WritesNothing(Pass):
    def run(self, model, config, context):
        return Model("text", {"text.txt": "0" * 64})


class FullDisk(Pass):
    def run(self, model, config, context):
        note("FullDisk")
        if not os.path.exists(os.environ.get("DRUPE_TOY_SPACE", "")):  # noqa: PTH110
            raise OSError(errno.ENOSPC, "No space left on device")
        (context.output_dir / "text.txt").write_text("enough")
        return Model.from_dir("text", context.output_dir)

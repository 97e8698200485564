"""Data, runtime and metrics: a text answers an item right when the item's difficulty is below the text's length."""

import hashlib
import os
import time

import numpy as np

from drupe import (
    DataConfig,
    DataContainer,
    EvaluationError,
    HostError,
    Metric,
    MetricConfig,
    Result,
    Runtime,
    Sample,
    Session,
    SubType,
)
from drupe_toy.passes import note


class ItemsConfig(DataConfig):
    count: int = 100
    start: str = "toy://0"


class ToyItems(DataContainer):
    Config = ItemsConfig

    def identity(self, config, workflow_dir):
        return [config.count, config.start]

    def load(self, config, model, context):
        start = int(config.start.removeprefix("toy://"))
        for i in range(start, start + config.count):
            difficulty = int(hashlib.sha256(str(i).encode()).hexdigest()[:6], 16) / 0xFFFFFF
            yield Sample(str(i), {"x": np.array([difficulty])}, target=1, content_key=str(i))


class ToySession(Session):
    def __init__(self, text):
        self._skill = min(len(text) / 20, 1.0)

    def forward(self, batch):
        return Result({"y": (batch["x"] < self._skill).astype(np.int64)})


class ToyRuntime(Runtime):
    def requirements(self, info):
        return (info.attributes["needs"],) if "needs" in info.attributes else ()

    def open(self, model, accelerator, options):
        if options.get("gone") and not os.path.exists(os.environ.get("DRUPE_TOY_SPACE", "")):  # noqa: PTH110
            raise HostError("the rack is dark", retry=False)
        return ToySession((model.folder / "text.txt").read_text())


class ToyAccuracy(Metric):
    Config = MetricConfig
    sub_types = {"accuracy_score": SubType("", "higher", proportion=True)}
    default_sub_type = "accuracy_score"

    def measure(self, model, session, samples, config, context):
        note(f"measure accuracy {(model.folder / 'text.txt').read_text()} {len(samples)}")
        return {s.id: (float(session.forward({"x": s.inputs["x"]}).outputs["y"][0] == s.target),) for s in samples}

    def aggregate(self, rows, sub_type, config):
        return sum(row[0] for row in rows) / len(rows)


class ToyLength(Metric):
    Config = MetricConfig
    sub_types = {"characters": SubType("characters", "lower")}
    default_sub_type = "characters"

    def measure(self, model, session, samples, config, context):
        return {"model": (float(len((model.folder / "text.txt").read_text())),)}

    def aggregate(self, rows, sub_type, config):
        return rows[0][0]


class SecondsConfig(MetricConfig):
    nap: float = 0.3


class ToySeconds(Metric):
    """Wants the machine alone, and takes a while."""

    Config = SecondsConfig
    sub_types = {"value": SubType("s", "lower")}
    default_sub_type = "value"

    def measure(self, model, session, samples, config, context):
        note("timed begin")
        time.sleep(config.nap)
        note("timed end")
        return {"run": (config.nap,)}

    def aggregate(self, rows, sub_type, config):
        return rows[0][0]


class ToyBroken(Metric):
    Config = MetricConfig
    sub_types = {"value": SubType("", "higher")}
    default_sub_type = "value"

    def measure(self, model, session, samples, config, context):
        raise EvaluationError("the toy metric can't measure this")

"""Registers the toy passes, data, metric, runtime, kind and source."""

from drupe import (
    DataSpec,
    MetricSpec,
    ModelKindSpec,
    ModelSourceSpec,
    PassSpec,
    RuntimeSpec,
    hookimpl,
)


@hookimpl
def drupe_passes():
    names = ("Append", "Learn", "Sleepy", "Raises", "Dies", "Unlucky", "ChangesInput", "WritesNothing", "FullDisk")
    return [PassSpec(name=name, target=f"drupe_toy.passes:{name}", accepts={"text"}, produces="text") for name in names]


@hookimpl
def drupe_model_kinds():
    return [ModelKindSpec(name="text", target="drupe_toy.models:Text", aliases=("TextModel",))]


@hookimpl
def drupe_model_sources():
    return [ModelSourceSpec(name="toy", target="drupe_toy.models:ToySource", schemes=("toy",))]


@hookimpl
def drupe_data_containers():
    return [DataSpec(name="ToyItems", target="drupe_toy.measuring:ToyItems")]


@hookimpl
def drupe_runtimes():
    return [
        RuntimeSpec(name="toy", target="drupe_toy.measuring:ToyRuntime", kinds={"text"}, capabilities={"forward"}),
    ]


@hookimpl
def drupe_metrics():
    return [
        MetricSpec(name="toy_accuracy", target="drupe_toy.measuring:ToyAccuracy", needs="forward"),
        MetricSpec(name="toy_length", target="drupe_toy.measuring:ToyLength"),
        MetricSpec(name="toy_seconds", target="drupe_toy.measuring:ToySeconds", needs="forward", timed=True),
        MetricSpec(name="toy_broken", target="drupe_toy.measuring:ToyBroken"),
    ]

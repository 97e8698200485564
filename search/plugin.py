"""Registers the Optuna study, its samplers, and the commands around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import CommandSpec, Spec, StudySpec
from drupe.search.specs import SamplerSpec


@hookimpl
def drupe_hookspecs() -> Mapping[str, type[Spec]]:
    """Open the hook through which samplers come."""
    return {"drupe_samplers": SamplerSpec}


@hookimpl
def drupe_studies() -> Sequence[StudySpec]:
    """Contribute the Optuna study."""
    return [
        StudySpec(
            name="optuna",
            target="drupe.search.study:OptunaStudy",
            summary="Search with Optuna's samplers, resumable and in parallel.",
            requires=("optuna>=5.0",),
            priority=10,
        )
    ]


@hookimpl
def drupe_samplers() -> Sequence[SamplerSpec]:
    """Contribute the built-in samplers."""
    return [
        SamplerSpec(
            name="brute-force",
            target="drupe.search.samplers:brute_force",
            summary="Every point of a finite space, in order, so that neighbours share their first steps.",
            aliases=("grid", "sequential", "exhaustive", "bruteforce", "brute_force"),
            finite=True,
            pruned=True,
        ),
        SamplerSpec(
            name="tpe",
            target="drupe.search.samplers:tpe",
            summary="Tree-structured Parzen estimator, with constraints; for spaces of any kind.",
            pruned=True,
        ),
        SamplerSpec(
            name="gp",
            target="drupe.search.samplers:gp",
            summary="Gaussian process, with constraints; for few parameters and long trials.",
            requires=("torch>=2",),
        ),
        SamplerSpec(
            name="nsga2",
            target="drupe.search.samplers:nsga2",
            summary="Evolution over several objectives, with constraints.",
            aliases=("nsgaii", "nsga-ii"),
        ),
        SamplerSpec(
            name="random", target="drupe.search.samplers:random", summary="Points drawn at random.", pruned=True
        ),
    ]


@hookimpl
def drupe_commands() -> Sequence[CommandSpec]:
    """Contribute `drupe search` and `drupe worker`."""
    return [
        CommandSpec(name="search", target="drupe.search.cli:search", summary="Look into a study."),
        CommandSpec(name="worker", target="drupe.search.joining:worker", summary="Help with a study from here."),
    ]

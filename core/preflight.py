"""Looks at the systems of a workflow before work starts: what can't work is told in seconds, and not after hours.

A system is asked whether jobs can run there, whether it has the devices that it is a target for, and whether what the
passes and metrics need is installed there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from drupe.core.accelerators import Accelerator
from drupe.core.engine import Engine
from drupe.core.errors import ConfigError, DrupeError, Fault, HostError
from drupe.core.hosts import HostDescription
from drupe.core.placing import added_requirements, placed_passes
from drupe.core.plan import MOST_CHECKS, Plan, check_points
from drupe.core.registry import Registered
from drupe.core.requirements import told, unmet
from drupe.core.serving import find_runtime
from drupe.core.specs import HostSpec, MetricSpec, PassSpec
from drupe.core.workflow.findings import join
from drupe.core.workflow.model import PassAlternative

__all__ = ["check_systems", "system_faults"]

VersionOf = Callable[[str], str | None]
"""A distribution's name → its version on a host."""
_LAUNCHERS = {"torchrun": ("torch",), "accelerate": ("accelerate", "torch")}
"""What a pass's launcher is part of."""


def check_systems(engine: Engine, plan: Plan) -> None:
    """Check every system that the workflow uses. Raises HostError with all that was found."""
    names = _used(engine)
    # One after the other, in this thread: what a library starts (a Ray cluster) may end with the thread that did.
    faults = [fault for name in names for fault in system_faults(engine, name, plan)]
    if len(faults) == 1:
        raise HostError(str(faults[0]), retry=False)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise HostError(f"{len(faults)} things keep the systems from their work\n{lines}", retry=False)


def system_faults(engine: Engine, name: str, plan: Plan | None = None) -> list[Fault]:
    """Return what keeps a system from its part in the workflow, each with its path in the file.

    plan: what is to be made; without it nothing is said of what opening the results needs.
    """
    where = join("systems", name)
    try:
        host = engine.host(name)
        faults = [_below(where, fault) for fault in host.check()]
        if faults:
            return faults
        description = host.describe()
    except DrupeError as error:
        return [Fault(where, str(error), kind="needs")]
    if name in engine.workflow.targets and _measuring(engine):
        faults += _device_faults(where, description, engine.workflow.systems[name].accelerators)
    if not description.versions:
        return faults
    version_of = dict(description.versions).get
    apart = [] if _makes_environments(engine, name) else [e for e in _passes(engine, name) if _stays_apart(e)]
    faults += [fault for entry in apart for fault in _own_environment_faults(engine, name, version_of, entry)]
    lacking = _unmet(engine, name, version_of, apart)
    if plan is not None and name in engine.workflow.targets and _measuring(engine):
        lacking = {**_unmet_by_results(engine, name, version_of, plan), **lacking}
    return faults + [Fault(where, *texts, kind="needs") for texts in lacking.values()]


def _used(engine: Engine) -> list[str]:
    workflow = engine.workflow
    hosts = [host for _, _, _, hosts in placed_passes(engine.workflow, engine.registry) for host in hosts]
    targets = workflow.targets if workflow.evaluator else ()
    return list(dict.fromkeys([workflow.host, *hosts, *targets]))


def _below(where: str, fault: Fault) -> Fault:
    path = join(where, fault.path) if fault.path else where
    return Fault(path, fault.found, fault.expected, fault.hint, fault.kind)


def _measuring(engine: Engine) -> bool:
    """Whether models are opened on the target: only then must its devices be there."""
    return any(cast(MetricSpec, entry.spec).needs is not None for entry in _metrics(engine))


def _metrics(engine: Engine) -> list[Registered]:
    evaluator = engine.workflow.evaluators.get(engine.workflow.evaluator or "")
    found = [engine.registry.find("drupe_metrics", metric.type) for metric in (evaluator.metrics if evaluator else ())]
    return [entry for entry in found if entry is not None]


def _device_faults(where: str, description: HostDescription, accelerators: Sequence[Accelerator]) -> list[Fault]:
    """Return the devices that a target is to have and does not. What an NPU's driver shows only its plugin knows."""
    faults = []
    for index, accelerator in enumerate(accelerators):
        count = sum(1 for device in description.devices if device.get("device") == accelerator.device)
        path = join(where, f"accelerators.{index}")
        if accelerator.device in ("cpu", "npu"):
            continue
        if not count:
            hint = "measure on a system that has one, or leave the evaluator out"
            faults.append(Fault(join(path, "device"), f"no {accelerator.device} is found there", "", hint, "needs"))
            continue
        number = accelerator.provider_options.get("device_id")
        if number is not None and str(number).isdigit() and int(number) >= count:
            numbers = "only 0" if count == 1 else f"0 to {count - 1}"
            found = f"device_id {number}; there are the {accelerator.device}s {numbers}"
            faults.append(Fault(join(path, "execution_providers"), found, kind="needs"))
    return faults


def _alternatives(engine: Engine, name: str) -> Iterator[tuple[str, PassAlternative, Registered]]:
    """Yield the passes that run on a system, each with its name in the workflow."""
    for title, alternative, found, hosts in placed_passes(engine.workflow, engine.registry):
        if name in hosts:
            yield title, alternative, found


def _passes(engine: Engine, name: str) -> list[Registered]:
    """Return the passes that run on a system, each once."""
    return list({entry.spec.name: entry for _, _, entry in _alternatives(engine, name)}.values())


def _stays_apart(entry: Registered) -> bool:
    return isinstance(entry.spec, PassSpec) and entry.spec.own_environment


def _makes_environments(engine: Engine, name: str) -> bool:
    """Whether the system's environment is the user's or made for it, so that what is missing can be put there."""
    entry = engine.registry.find("drupe_hosts", engine.workflow.systems[name].type)
    return entry is not None and cast(HostSpec, entry.spec).environment_field is not None


def _own_environment_faults(engine: Engine, name: str, version_of: VersionOf, entry: Registered) -> Iterator[Fault]:
    """Yield what a pass lacks that can't be where the others' libraries are, with the lines that give it a host."""
    lacking = unmet(entry.spec.requires, version_of)
    if not lacking:
        return
    texts = " and ".join(f"{text} (there is {there})" for text, there in lacking.items())
    found = f"{entry.spec.name} needs {texts} on {name}, where other passes need other versions"
    hosts = (host for host in engine.registry.of("drupe_hosts") if cast(HostSpec, host.spec).environment_field)
    maker = next(hosts, None)
    for title, alternative, used in _alternatives(engine, name):
        if used.spec != entry.spec:
            continue
        hint = "run it on a host that has them"
        if maker is not None:
            field = cast(HostSpec, maker.spec).environment_field
            system = {"type": maker.spec.name, field: list(entry.spec.requires)}
            own = f"{title}_environment"
            step = {"type": alternative.type, "host": own}
            lines = (f'"systems": {json.dumps({own: system})}', f'"passes": {json.dumps({title: step})}')
            hint = "give it an environment of its own by adding to the workflow\n    " + "\n    ".join(lines)
        yield Fault(alternative.where, found, "", hint, "needs")


def _unmet(
    engine: Engine, name: str, version_of: VersionOf, apart: Sequence[Registered]
) -> dict[str, tuple[str, str, str]]:
    """Return requirement → (found, expected, hint) of each that is not met.

    apart: passes whose own requirements are told elsewhere.
    """
    found: dict[str, tuple[str, str, str]] = {}

    def look(who: str, texts: Iterable[str]) -> None:
        for text, (lacks, command) in told(who, texts, version_of).items():
            found[text] = (lacks, "", f"{command} there")

    metrics = _metrics(engine) if name in engine.workflow.targets else []
    for entry in (*_passes(engine, name), *metrics):
        plugin = entry.plugin
        if plugin.distribution.lower() not in ("drupe", "?"):
            there = version_of(plugin.distribution.lower().replace("_", "-"))
            if there != plugin.version:
                wanted = f"{plugin.distribution} {plugin.version}"
                hint = "install the same version there"
                found[wanted] = (f"{entry.spec.name} is of {wanted}; there is {there or 'none'}", "", hint)
        launcher = _LAUNCHERS.get(getattr(entry.spec, "launcher", None) or "", ())
        look(entry.spec.name, (*(() if entry in apart else entry.spec.requires), *launcher))
    for _, alternative, entry in _alternatives(engine, name):
        added = added_requirements(engine.workflow, engine.registry, alternative, entry)
        look(f"{entry.spec.name}, as {alternative.where} sets it,", added)
    return found


def _unmet_by_results(engine: Engine, name: str, version_of: VersionOf, plan: Plan) -> dict[str, tuple[str, str, str]]:
    """Return requirement → (found, expected, hint) of each that opening what a chain ends in needs on its target."""
    found: dict[str, tuple[str, str, str]] = {}
    system = engine.workflow.systems[name]
    for point in itertools.islice(check_points(plan.space), MOST_CHECKS):
        try:
            info = plan.result(plan.steps(point), name)
            entry = find_runtime(engine.registry, info.kind, system.accelerators[0], system.runtime)
        except ConfigError:
            # It fits nowhere, which is told where points are checked.
            continue
        texts = (*entry.spec.requires, *engine.registry.resolve(entry)(entry.spec).requirements(info))
        who = f"measuring what the passes make, by the runtime {entry.spec.name},"
        for text, (lacks, command) in told(who, texts, version_of).items():
            found[text] = (lacks, "", f"{command} there")
    return found

"""On which system a pass runs, and what it needs there that can be told without asking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drupe.core.errors import Fault, PluginError
from drupe.core.registry import Registered, Registry
from drupe.core.requirements import installed_version, told
from drupe.core.workflow.findings import join
from drupe.core.workflow.markers import find_markers
from drupe.core.workflow.model import PassAlternative, Workflow

__all__ = ["added_requirements", "host_of", "placed_passes", "requirement_needs"]


def host_of(workflow: Workflow, alternative: PassAlternative, entry: Registered | None, target: str) -> str:
    """Return the name of the system that a pass runs on for a target: its own host, else the target's system where the
    pass is to run there and can, else the workflow's host. entry: the registered pass, where it is known."""
    if alternative.host:
        return alternative.host
    there = entry is not None and getattr(entry.spec, "on_target", False) and not workflow.systems[target].measures_only
    return target if there else workflow.host


def placed_passes(
    workflow: Workflow, registry: Registry
) -> Iterator[tuple[str, PassAlternative, Registered, Sequence[str]]]:
    """Yield the passes of a workflow, each with its name there and the systems that it runs on."""
    for title, entry in workflow.passes.items():
        for alternative in entry.alternatives:
            found = registry.find("drupe_passes", alternative.type)
            if found is not None:
                hosts = [host_of(workflow, alternative, found, target) for target in workflow.targets]
                yield title, alternative, found, list(dict.fromkeys(hosts))


def added_requirements(
    workflow: Workflow, registry: Registry, alternative: PassAlternative, entry: Registered
) -> Sequence[str]:
    """Return the requirements that a pass's config adds on any target, what is searched at its default."""
    from pydantic import ValidationError

    factory = registry.resolve(entry)
    given = {key: value for key, value in alternative.config.items() if not any(find_markers({key: value}))}
    try:
        config = factory.Config.model_validate(given)
    except ValidationError:
        # What is searched has no default, or not one that goes with the rest: told when the job starts.
        return []
    found: list[str] = []
    for target in workflow.targets:
        try:
            found += factory(entry.spec).requirements(config, workflow.systems[target].accelerators[0])
        except Exception as error:
            problem = f"{entry.spec.name} of {entry.plugin} can't tell what it needs: {type(error).__name__}: {error}"
            raise PluginError(f"{alternative.where}: {problem}") from error
    return list(dict.fromkeys(found))


def requirement_needs(workflow: Workflow, registry: Registry) -> list[Fault]:
    """Return what the configs of passes need and what is known without reaching a system to be missing there.

    It is known of this environment, and of a system that is not there yet, such as an environment still to be made. A
    pass that can't tell what it needs is a fault among the others.
    """
    faults: list[Fault] = []
    for _, alternative, entry, hosts in placed_passes(workflow, registry):
        try:
            added = added_requirements(workflow, registry, alternative, entry)
        except PluginError as error:
            problem = str(error).removeprefix(f"{alternative.where}: ")
            hint = f"install another version of {entry.plugin.distribution}, or leave the pass out"
            faults.append(Fault(alternative.where, problem, "", hint))
            continue
        for name in hosts if added else ():
            host = registry.find("drupe_hosts", workflow.systems[name].type)
            where = join("systems", name)
            if host is not None and getattr(registry.resolve(host), "light", False):
                lacking = told(f"{entry.spec.name}, on {name},", added, installed_version)
            elif any(need.path == where or need.path.startswith(f"{where}.") for need in workflow.needs):
                lacking = told(f"{entry.spec.name}, on {name},", added, lambda _: None)
            else:
                continue
            for found, command in lacking.values():
                faults.append(Fault(alternative.where, found, "", f"{command} there", "needs"))
    return faults

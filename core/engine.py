"""Turns the steps of a workflow into jobs with keys and has them run: the input model's import, and passes.

A step is looked up by its key; what is stored is not done again. Two engines that want the same step meet at the
store's lock, and the second one finds the first one's result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from drupe.core.accelerators import Accelerator
from drupe.core.context import Resources
from drupe.core.errors import ConfigError, HostError
from drupe.core.executor import Executor, StepResult
from drupe.core.hosts import Host, JobOptions
from drupe.core.job import Job, JobData
from drupe.core.keys import config_identity, file_identity, step_key
from drupe.core.model import Model
from drupe.core.pinning import Pins
from drupe.core.plan import StepPlan
from drupe.core.registry import Registered, Registry
from drupe.core.specs import ModelKindSpec, PassSpec
from drupe.core.store import Store
from drupe.core.workflow.model import Workflow

__all__ = ["ChainResult", "Engine", "StepResult"]


@dataclass(frozen=True)
class ChainResult:
    """What a chain of steps made. cost: seconds really spent; saved: seconds that the store saved."""

    model: Model
    steps: tuple[StepResult, ...]

    @property
    def cost(self) -> float:
        """Seconds spent in steps that ran."""
        return sum(step.seconds for step in self.steps if not step.cached)

    @property
    def saved(self) -> float:
        """Seconds of the steps that came from the store."""
        return sum(step.seconds for step in self.steps if step.cached)


class Engine:
    """Runs the steps of one workflow. Safe to use from several threads."""

    def __init__(
        self,
        workflow: Workflow,
        registry: Registry,
        store: Store,
        *,
        allow: frozenset[str] = frozenset(),
        events: Callable[[Mapping[str, Any]], None] = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
        log_dir: Path | None = None,
        state_dir: Path | None = None,
        rehearsal: bool = False,
        resolved: Mapping[str, Any] | None = None,
    ) -> None:
        """rehearsal: every step works on a small stand-in of the model and does the least work. resolved: what names
        that may move meant in the run that this one belongs to, as its `resolved()` told."""
        self._rehearsal = rehearsal
        self.workflow = workflow
        self.registry = registry
        self.store = store
        self.allow = allow
        self.cancelled = cancelled
        self._state_dir = state_dir or store.root / "hosts"
        self._hosts: dict[str, Host] = {}
        self._data_identity: dict[str, Any] = {}
        self._resolved = dict(resolved or {})
        self._pins = Pins(registry, workflow.folder, self._resolved.get("references", ()))
        self._environments: dict[str, str] = {}
        self.executor = Executor(store, registry, self.host, events=events, cancelled=cancelled, log_dir=log_dir)

    # Hosts

    def host(self, name: str) -> Host:
        """Return the host of the system `name`, created on first use."""
        if name not in self._hosts:
            system = self.workflow.systems[name]
            entry = self.registry.get("drupe_hosts", system.type)
            factory = self.registry.resolve(entry)
            config = factory.Config.model_validate(self._with_absolute_paths(factory.Config, system.config))
            host = factory(entry.spec, config, state_dir=self._state_dir / name)
            if (environment := self._resolved.get("environments", {}).get(name)) is not None:
                host.use_environment(environment)
            self._hosts[name] = host
        return self._hosts[name]

    def _with_absolute_paths(self, kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a host's config with the paths that are relative to the workflow's folder made absolute."""
        from drupe.core.config import inner_configs, references

        found = dict(values)
        for name, what in references(kind).items():
            if what == "file" and isinstance(found.get(name), str):
                found[name] = str((self.workflow.folder / Path(found[name]).expanduser()).absolute())
        for name, inner in inner_configs(kind).items():
            if isinstance(found.get(name), Mapping):
                found[name] = self._with_absolute_paths(inner, found[name])
        return found

    def close(self) -> None:
        """Stop what runs for the hosts."""
        for host in self._hosts.values():
            host.close()

    def packages(self, host: str, names: Sequence[str]) -> dict[str, str]:
        """Return the versions of distributions as the host has them; an absent one reads "absent".

        An environment that somebody may change under its name counts as one of them.
        """
        try:
            description = self.host(host).describe()
        except HostError as error:
            error.host = error.host or host
            raise
        found = {name: description.versions.get(name, "absent") for name in sorted(names)}
        if description.environment:
            self._environments[host] = found["environment"] = description.environment
        return found

    def resolved(self) -> dict[str, Any]:
        """Return what names that may move meant in this run: references, and the environments of systems."""
        found = {"references": self._pins.moved(), "environments": dict(self._environments)}
        return {name: value for name, value in found.items() if value}

    # Data

    def data_identity(self, name: str) -> Any:
        """Return the identity of a data config: container, version, config, split and what its files hold."""
        if name not in self._data_identity:
            entry = self.workflow.data.get(name)
            if entry is None:
                raise ConfigError(f"data config {name!r} is not defined; defined: {', '.join(self.workflow.data)}")
            registered = self.registry.get("drupe_data_containers", entry.type)
            container = self.registry.resolve(registered)(registered.spec)
            config = container.Config.model_validate(self._pins.pinned(dict(entry.config)))
            self._data_identity[name] = {
                "type": registered.spec.name,
                "provider": f"{registered.plugin.distribution} {registered.plugin.version}",
                "version": container.version,
                "config": config.model_dump(mode="json"),
                "content": container.identity(config, self.workflow.folder),
                "split": dict(entry.split),
            }
        return self._data_identity[name]

    def file_identity(self, path: Path) -> Any:
        """Return the identity of a file or folder that a config refers to. Raises ConfigError when it is absent."""
        return file_identity(path, self.store.digest_file)

    def job_data(self, names: Sequence[str]) -> dict[str, JobData]:
        """Return data configs as a job carries them."""
        found = {}
        for name in names:
            entry = self.workflow.data[name]
            found[name] = JobData(entry.type, self._pins.pinned(entry.config), entry.split)
        return found

    # Steps

    def import_model(self) -> StepResult:
        """Make the input model a stored Model."""
        job = self._import_job()
        host = self.workflow.host
        return self.executor.step(job, host, JobOptions(resources=self.resources(host)))

    def stored_import(self) -> StepResult | None:
        """Return the input model's import when the store has it."""
        record = self.store.get(self._import_job().key)
        return self.executor.result(record, cached=True) if record else None

    def _import_job(self) -> Job:
        from drupe.core.sources import find_source

        entry = self.registry.get("drupe_model_kinds", self.workflow.model_kind)
        kind = self.registry.resolve(entry)(entry.spec)
        named = {k: v for k, v in self.workflow.input_model.items() if k != "type"}
        config = kind.Config.model_validate(self._pins.pinned(named))
        options = dict(kind.source_options(config))
        identities = {}
        used = [entry]
        places = list(kind.references(config).values())
        for role, reference in kind.references(config).items():
            source = find_source(self.registry, reference, self.workflow.folder)
            used.append(self.registry.get("drupe_model_sources", source.spec.name))
            identities[role] = [
                source.spec.name,
                source.version,
                source.identity(reference, options, self.workflow.folder),
            ]
        host = self.workflow.host
        values = config.model_dump(mode="json")
        secrets = [name for name, what in _references(config).items() if what == "secret"]
        packages = self.packages(host, cast(ModelKindSpec, entry.spec).key_packages)
        key = step_key(
            "import",
            entry,
            version=kind.version,
            # Where the model lies does not matter, what it holds does: `identities` has that.
            config={k: v for k, v in values.items() if v not in places and k not in secrets},
            inputs={},
            references=identities,
            packages=packages,
            accelerator=None,
            seed=0,
            extra={"rehearse": True} if self._rehearsal else None,
        )
        return Job("import", key, "input model", self.registry.reference(entry), values, **self.common(*used))

    def run_chain(self, chain: Sequence[StepPlan], model: Model, accelerator: Accelerator) -> ChainResult:
        """Run the steps of a chain one after the other. Raises PassError, HostError, ConfigError, Interrupted."""
        steps: list[StepResult] = []
        for plan in chain:
            result = self.run_pass(plan, model, accelerator)
            steps.append(result)
            assert result.model is not None
            model = result.model
        return ChainResult(model, tuple(steps))

    def run_pass(self, plan: StepPlan, model: Model, accelerator: Accelerator) -> StepResult:
        """Run one pass on a model, or find its result."""
        job, options = self._pass_job(plan, model, accelerator)
        return self.executor.step(job, plan.host, options)

    def pass_key(self, plan: StepPlan, model: Model, accelerator: Accelerator) -> str:
        """Return the step key of a pass on a model."""
        return self._pass_job(plan, model, accelerator)[0].key

    def stored_pass(self, plan: StepPlan, model: Model, accelerator: Accelerator) -> StepResult | None:
        """Return the result of a pass when the store has it."""
        record = self.store.get(self.pass_key(plan, model, accelerator))
        return self.executor.result(record, cached=True) if record else None

    def _pass_job(self, plan: StepPlan, model: Model, accelerator: Accelerator) -> tuple[Job, JobOptions]:
        entry = self.registry.get("drupe_passes", plan.type)
        spec = cast(PassSpec, entry.spec)
        pass_ = self.registry.resolve(entry)(spec)
        config = pass_.Config.model_validate(dict(plan.config))
        values, found = config_identity(
            config,
            data=self.data_identity,
            file=self.file_identity,
            folder=self.workflow.folder,
        )
        resources = self.resources(plan.host, spec, alone=False)
        key = step_key(
            "pass",
            entry,
            version=pass_.version,
            config=values,
            inputs={"model": model.digest},
            references=found,
            packages=self.packages(plan.host, spec.key_packages),
            accelerator=accelerator if spec.accelerator_matters else None,
            seed=self.workflow.seed,
            extra={"fingerprint": pass_.fingerprint(None)} if pass_.fingerprint(None) else None,
        )
        data_fields = [n for n, what in _references(config).items() if what == "data"]
        names = [name for f in data_fields for name in _listed(getattr(config, f))]
        job = Job(
            "pass",
            key,
            plan.name,
            self.registry.reference(entry),
            config.model_dump(mode="json"),
            inputs={"model": model},
            data=self.job_data(names),
            accelerator=accelerator,
            resources=resources,
            **self.common(entry, *self.data_providers(names)),
        )
        return job, JobOptions(resources=resources, launcher=spec.launcher, launched_from=spec.launched_from)

    def data_providers(self, names: Iterable[str]) -> list[Registered]:
        """Return the containers behind data configs."""
        return [self.registry.get("drupe_data_containers", self.workflow.data[name].type) for name in names]

    def common(self, *used: Registered) -> dict[str, Any]:
        """Return the fields that every job of this workflow has. used: what of the plugins the job needs."""
        requires = {"drupe": _drupe_version()}
        for entry in used:
            if entry.plugin.distribution.lower() not in ("drupe", "?"):
                requires[entry.plugin.distribution] = entry.plugin.version
        return {
            "seed": self.workflow.seed,
            "allow": tuple(sorted(self.allow)),
            "plugins": dict(self.workflow.plugins),
            "requires": requires,
            "workflow_dir": str(self.workflow.folder),
            "options": {"rehearse": True} if self._rehearsal else {},
        }

    def resources(self, host: str, spec: PassSpec | None = None, *, alone: bool = True) -> Resources:
        """Return what a job may use on a host: the system's `resources` over the pass's own over all cores.

        alone: no other trial's job runs beside it; otherwise what is not set is shared among the search's workers.
        """
        config = self.workflow.systems[host].config
        wanted = {**(dict(spec.resources) if spec else {}), **dict(config.get("resources") or {})}
        cpus = int(wanted.get("cpus") or self._share(host, alone=alone))
        return Resources(
            cpus=cpus,
            gpus=float(wanted.get("gpus", 0)),
            memory=wanted.get("memory"),
            threads=wanted.get("threads") or config.get("threads"),
        )

    def _share(self, name: str, *, alone: bool) -> int:
        """Return the cores of a host, or those of one worker where several share it."""
        host = self.host(name)
        workers = self.workflow.search.workers if self.workflow.search is not None else 1
        return _cpus(host) if alone or not host.one_machine else max(1, _cpus(host) // workers)


def _references(config: Any) -> Mapping[str, str]:
    from drupe.core.config import references

    return references(type(config))


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _cpus(host: Host) -> int:
    for device in host.describe().devices:
        if device.get("device") == "cpu":
            return int(device.get("cores", 1))
    return 1


def _drupe_version() -> str:
    import drupe

    return drupe.__version__

"""Runs a workflow: per target a study of trials, then the verdict on data nobody selected on, then the hand-over.

Nothing finished is lost: every step is in the store, every trial in the study's file, and the manifest is rewritten
as trials finish. The same command goes on where a run was stopped.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from drupe.core.certification import SELECTION, part_that_selects, with_certification_split
from drupe.core.data_checks import Checks
from drupe.core.deciding import Decider
from drupe.core.digests import digest_of
from drupe.core.disk import store_errors
from drupe.core.engine import Engine
from drupe.core.errors import ConfigError, DrupeError, HostError
from drupe.core.joining import check_same, offer
from drupe.core.measuring import Measurer
from drupe.core.model import Model
from drupe.core.plan import Plan, build_plan
from drupe.core.preflight import check_systems
from drupe.core.registry import Registry
from drupe.core.results import Candidate, RunResult, TargetResult, write_candidates, write_manifest
from drupe.core.set_aside import HostFailures, SetAside, stop
from drupe.core.store import open_store
from drupe.core.study import OnePointStudy, Study, StudySettings, Trial
from drupe.core.study_choice import check_search, new_study
from drupe.core.target_space import LeftOut, Refusals, target_space
from drupe.core.trial_workers import TrialWorkers, timed_search
from drupe.core.trials import TrialRunner, racing_runner
from drupe.core.warm_start import Findings
from drupe.core.workflow.model import Evaluator, Workflow

__all__ = ["Driver"]

Events = Callable[[Mapping[str, Any]], None]
_WRITES_APART = 20
"""How many times as long as writing the manifest took passes before it is written for another trial."""


class Driver:
    """Runs one workflow into its output folder."""

    def __init__(
        self,
        workflow: Workflow,
        registry: Registry,
        *,
        allow: frozenset[str] = frozenset(),
        events: Events = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
        resolved: Mapping[str, Any] | None = None,
    ) -> None:
        """resolved: what names that may move meant in the run that is joined. See Engine.resolved."""
        self.workflow = with_certification_split(workflow)
        self.registry = registry
        self._events = events
        self._cancelled = cancelled
        self._stop = threading.Event()
        self.store = open_store(workflow.cache_dir, workflow.store_url)
        self.engine = Engine(
            self.workflow,
            registry,
            self.store,
            allow=allow,
            events=events,
            cancelled=lambda: cancelled() or self._stop.is_set(),
            log_dir=workflow.output_dir / "logs",
            resolved=resolved,
        )
        self.measurer = Measurer(self.engine)
        self.result = RunResult(workflow.output_dir)
        self._facts: dict[str, Any] = {
            "seed": workflow.seed,
            "notices": [str(notice) for notice in workflow.notices],
            "workflow_file": os.path.relpath(workflow.path, workflow.output_dir),
        }
        self._write_lock = threading.Lock()
        self._findings = Findings(events)
        self._failures = HostFailures()
        self._refusals: dict[str, Refusals] = {}
        self._assisting = False
        self._next_write = 0.0

    def run(self) -> RunResult:
        """Run to the end. Raises ConfigError, HostError, StoreError, Interrupted; the manifest is written even then."""
        started = time.monotonic()
        plan = build_plan(self.workflow, self.registry)
        check_search(plan)
        with self._output_lock():
            try:
                check_systems(self.engine, plan)
                source = self.engine.import_model()
                assert source.model is not None
                for target in self.workflow.targets:
                    self.result.targets[target] = TargetResult(target)
                    try:
                        self._run_target(target, plan, source.model)
                    except HostError as error:
                        # Outside of a trial: the input model's measurement, or the winner's certification.
                        stop(self.result.targets[target], error)
            except DrupeError as error:
                self.result.exit_code = error.exit_code
                raise
            finally:
                self.result.seconds = time.monotonic() - started
                if self.result.exit_code == 0:
                    self.result.exit_code = max((_exit_code(t) for t in self.result.targets.values()), default=0)
                self._write()
                self.engine.close()
        return self.result

    # One target

    def _run_target(self, target: str, plan: Plan, source: Model) -> None:
        evaluator = self.workflow.evaluators[self.workflow.evaluator] if self.workflow.evaluator else None
        searching = bool(plan.space.dimensions) and self.workflow.search is not None
        certify = part_that_selects(plan) == SELECTION
        runner = self._runner(target, plan, source)
        result = self.result.targets[target]
        result.generate = self._generate_hint(evaluator)
        self._measure_input(runner, result)
        decider = Decider(self.store, self.workflow, self.registry, self._events)
        study = self._open_study(target, plan, runner, searching)
        settings = self.workflow.search if searching else None
        result.started_from = self._findings.give(study, target)
        offer(study, self.workflow, runner)
        runner = racing_runner(runner, study, settings)
        try:
            known = {c.number: c for c in self._earlier(study, runner)}
            result.candidates = [known[n] for n in sorted(known)]
            aside = self._search(study, runner, result)
            self._tell_left_out(result, settings)
            if runner.racer is not None:
                result.sample_evaluations = runner.racer.counts(runner, result.candidates)
            self._findings.take(study, target, settings)
            if not aside.none_left():
                decider.decide(study, runner, result, certify=certify)
        finally:
            study.close()
        self._write()

    def _runner(self, target: str, plan: Plan, source: Model) -> TrialRunner:
        evaluator = self.workflow.evaluators[self.workflow.evaluator] if self.workflow.evaluator else None
        return TrialRunner(
            self.engine,
            self.measurer,
            plan,
            target,
            evaluator,
            source,
            part=part_that_selects(plan),
            checks=Checks(self.registry, self._events),
        )

    def assist(self, target: str, source: Model, name: str) -> TargetResult:
        """Run trials of the study `name`, which another process drives, until it is complete; return what came of them.

        source: the input model, as that process has imported it. Verdict, hand-over and manifest stay with the other.
        Raises ConfigError also where this machine would run another study than that one.
        """
        self._assisting = True
        plan = build_plan(self.workflow, self.registry)
        runner = self._runner(target, plan, source)
        check_same(name, self._study_name(target, runner, target_space(plan, target)[1]))
        result = TargetResult(target)
        study = self._open_study(target, plan, runner, True)
        runner = racing_runner(runner, study, self.workflow.search)
        aside = SetAside(study, result, self._failures, self._events)
        try:
            self._trial_workers(study, runner, result, aside, workers=1, several=True).work()
        finally:
            study.close()
            self.engine.close()
        return result

    def _open_study(self, target: str, plan: Plan, runner: TrialRunner, searching: bool) -> Study:
        evaluator = runner.evaluator
        goals = evaluator.goals if evaluator else ()
        objectives = evaluator.objectives if evaluator else ()
        study: Study = OnePointStudy()
        if searching:
            study = new_study(self.registry)
        settings = self.workflow.search if searching and self.workflow.search else StudySettings()
        folder = self.workflow.output_dir / "study"
        folder.mkdir(parents=True, exist_ok=True)
        space, left_out = target_space(plan, target) if searching else (replace(plan.space, dimensions=()), ())
        for left in left_out:
            self._notice(str(left))
        if searching:
            self._refusals[target] = Refusals(plan, target, self._notice)
            space = replace(space, refuses=self._refusals[target])
        study.open(self._study_name(target, runner, left_out), space, goals, objectives, settings, folder)
        return study

    def _study_name(self, target: str, runner: TrialRunner, left_out: Sequence[LeftOut]) -> str:
        """Name what the study's results depend on: another workflow is another study, and shares steps by the store."""
        document = {
            key: value
            for key, value in self.workflow.document.items()
            if key not in ("output_dir", "cache_dir", "search_strategy", "plugins", "log_severity_level")
        }
        search = self.workflow.search
        digest = digest_of(
            {
                "document": document,
                # A digest does not see the order of passes in a document.
                "flows": [list(flow) for flow in self.workflow.flows],
                "input": runner.input_model.digest,
                "target": target,
                "part": runner.part,
                "sampler": [search.sampler, search.seed] if search else None,
                # Trials that were cut short are no use to a search that wants all in full.
                **({"racing": asdict(search.multi_fidelity)} if search and search.multi_fidelity else {}),
                "data": {name: self.engine.data_identity(name) for name in self.workflow.data},
                # What can be served changes with what is installed; the space changes with it.
                **({"left out": [[one.dimension, one.value] for one in left_out]} if left_out else {}),
            }
        )
        return f"{target}-{digest[:16]}"

    def _earlier(self, study: Study, runner: TrialRunner, *, besides: Collection[int] = ()) -> Iterator[Candidate]:
        """Yield the trials that another run finished, completed from the store where it still has the steps."""
        for trial, outcome in study.finished():
            if trial.number in besides:
                continue
            chain = runner.stored_chain(trial) if outcome.candidate is not None else None
            yield runner.describe(trial, outcome, chain, {})

    def _trial_workers(
        self,
        study: Study,
        runner: TrialRunner,
        result: TargetResult,
        aside: SetAside,
        *,
        workers: int,
        several: bool,
    ) -> TrialWorkers:
        """several: whether other workers, of this process or of others, may be at a step that a trial needs."""
        return TrialWorkers(
            study,
            runner,
            lambda trial, lock: self._run_trial(study, runner, result, aside, trial, lock),
            workers=workers,
            aside=several,
            cancelled=self._cancelled,
            stop=self._stop.set,
            stopped=lambda: aside.stopped,
        )

    def _search(self, study: Study, runner: TrialRunner, result: TargetResult) -> SetAside:
        aside = SetAside(study, result, self._failures, self._events)
        count = self.workflow.search.workers if self.workflow.search else 1
        with timed_search(self.measurer, result, self.workflow.search):
            self._trial_workers(study, runner, result, aside, workers=count, several=count > 1).work()
        # What workers in other processes have told meanwhile.
        mine = {candidate.number for candidate in result.candidates}
        others = self._earlier(study, runner, besides=mine)
        result.candidates = sorted([*result.candidates, *others], key=lambda c: c.number)
        return aside

    def _run_trial(
        self,
        study: Study,
        runner: TrialRunner,
        result: TargetResult,
        aside: SetAside,
        trial: Trial,
        lock: threading.Lock,
    ) -> None:
        event = {"number": trial.number, "point": dict(trial.point), "target": runner.target}
        self._events({"event": "trial started", **event})
        if trial.answered is not None:
            outcome = trial.answered
            candidate = runner.describe(trial, outcome, None, {})
        else:
            try:
                outcome, candidate = runner.run(trial)
            except HostError as error:
                with lock:
                    aside.take(trial, error)
                return
            self._failures.worked(candidate, runner.target)
        with lock:
            study.tell(trial, outcome)
            result.candidates = sorted([*result.candidates, candidate], key=lambda c: c.number)
        self._events({"event": "trial finished", "candidate": candidate.to_json(), **event})
        self.registry.notify("drupe_trial_finished", trial={**event, **candidate.to_json()})
        self._write_soon()

    # Odds and ends

    def _notice(self, message: str) -> None:
        self._facts["notices"].append(message)
        self._events({"event": "notice", "message": message})

    def _tell_left_out(self, result: TargetResult, settings: StudySettings | None) -> None:
        """Note which combinations of values were no trials, and whether that ended the search early."""
        refusals = self._refusals.get(result.target)
        result.left_out = refusals.left_out if refusals else []
        done = len(result.candidates) + len(result.set_aside)
        limits = settings is None or settings.max_time is not None or settings.stop_when_goals_met
        if result.left_out and settings and not limits and done < (settings.max_trials or 0):
            left = f"the search for {result.target} ended after {done} of {settings.max_trials} trials"
            self._notice(f"{left}: no other combination of values fits")

    def _measure_input(self, runner: TrialRunner, result: TargetResult) -> None:
        if runner.evaluator is not None and self.workflow.options.get("evaluate_input_model"):
            found, errors, _ = self.measurer.measure(
                runner.input_model,
                runner.evaluator,
                runner.target,
                part=runner.part,
                reference=runner.input_model,
            )
            result.baseline = found
            for name, error in errors.items():
                self._events({"event": "warning", "message": f"input model, metric {name}: {error}"})

    def _generate_hint(self, evaluator: Evaluator | None) -> Mapping[str, Any]:
        for metric in evaluator.metrics if evaluator else ():
            if metric.data is not None:
                entry = self.workflow.data[metric.data]
                registered = self.registry.get("drupe_data_containers", entry.type)
                container = self.registry.resolve(registered)(registered.spec)
                hint = container.prompting(container.Config.model_validate(dict(entry.config)))
                if hint:
                    return dict(hint)
        return {}

    def _write_soon(self) -> None:
        """Write what is known unless that was done a moment ago: it takes longer the more trials there are."""
        if time.monotonic() >= self._next_write and self._write_lock.acquire(blocking=False):
            try:
                self._write_now()
            finally:
                self._write_lock.release()

    def _write(self) -> None:
        with self._write_lock:
            self._write_now()

    def _write_now(self) -> None:
        if self._assisting:
            return
        started = time.monotonic()
        resolved = self.engine.resolved()
        facts = {**self._facts, **({"resolved": resolved} if resolved else {})}
        with store_errors(f"the results can't be written to {self.result.output_dir}"):
            write_manifest(self.result, document=self.workflow.document, facts=facts)
            write_candidates(self.result)
        ended = time.monotonic()
        self._next_write = ended + _WRITES_APART * (ended - started)

    @contextmanager
    def _output_lock(self) -> Iterator[None]:
        folder = self.result.output_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = (folder / ".lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"the output folder {folder} can't be written: {error.strerror}; name another one with --output-dir"
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another run is writing to {folder}; wait for it, or name another folder with --output-dir"
                ) from None
            yield


def _exit_code(target: TargetResult) -> int:
    if target.set_aside:
        return 1
    return {"met": 0, "certified": 0, "failed": 1, "stopped": 1}.get(target.status, 3)

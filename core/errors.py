"""The errors that Drupe raises, in one tree.

DrupeError
├── ConfigError        the workflow, a config or a command is wrong          exit 2
├── PluginError        a plugin is broken, blocked, missing or ambiguous     exit 2
├── PassError          a pass failed on its input                            exit 1
├── HostError          a host failed: worth a retry elsewhere                exit 1
├── EvaluationError    a measurement could not be taken                      exit 1
├── StoreError         the store cannot be read or written                   exit 1
├── NoFeasibleModel    nothing met the goals                                 exit 3
└── Interrupted        stopped by the user; the same command resumes         exit 130

Every message says what was found, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "ConfigError",
    "DamagedFileError",
    "DrupeError",
    "EvaluationError",
    "Fault",
    "HostError",
    "Interrupted",
    "NoFeasibleModel",
    "PassError",
    "PluginError",
    "StoreError",
]


class DrupeError(Exception):
    """Base of all errors that Drupe raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a workflow: where, what was found, what was expected, what to do.

    `kind` is "fault" (wrong), "missing" (no installed plugin provides it) or "needs" (an absent file, a consent to
    give).
    """

    path: str
    found: str
    expected: str = ""
    hint: str = ""
    kind: str = "fault"

    def __str__(self) -> str:
        parts = [f"{self.path}: {self.found}" if self.path else self.found]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.hint:
            parts.append(self.hint)
        return "; ".join(parts)


class ConfigError(DrupeError):
    """The workflow, a config or a command line is wrong. `faults` holds every fault that was found."""

    exit_code = 2

    def __init__(self, message: str = "", faults: Sequence[Fault] = ()) -> None:
        self.faults = tuple(faults)
        super().__init__(message or "\n".join(str(fault) for fault in self.faults))


class PluginError(DrupeError):
    """A plugin is broken, blocked, missing or ambiguous, and something of it was asked for."""

    exit_code = 2


class PassError(DrupeError):
    """A pass failed: the job's fault, so a retry would not help."""


class HostError(DrupeError):
    """A host failed to run a job: the host's fault, worth a retry. `log_tail` holds the last lines of the job's log.

    retry is False where another try would fail as well: a distribution that is not installed there, a wrong key. host:
    the system's name in the workflow, as soon as it is known which one failed.
    """

    def __init__(self, message: str, log_tail: str = "", *, retry: bool = True, host: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail
        self.retry = retry
        self.host = host


class EvaluationError(DrupeError):
    """A measurement could not be taken; the metric counts as missing, never as met."""


class StoreError(DrupeError):
    """The store cannot be read or written, or what it holds does not match its digest."""


class DamagedFileError(StoreError):
    """A file does not hold what its digest says."""


class NoFeasibleModel(DrupeError):
    """Nothing met the goals, or none could be certified at the confidence asked for."""

    exit_code = 3


class Interrupted(DrupeError):
    """The user stopped the run; what was finished is kept and the same command resumes."""

    exit_code = 130

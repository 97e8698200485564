"""The command that runs one job: the worker, with a launcher before it where a pass wants several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drupe.core.hosts import JobOptions

__all__ = ["launched", "missing_launcher", "worker_command"]


def launched(options: JobOptions, processes: int) -> bool:
    """Whether a job goes through its launcher. processes: how many there are without GPUs; with them one a GPU."""
    return options.launcher is not None and (int(options.resources.gpus) or processes) >= options.launched_from


def worker_command(
    python: Sequence[str],
    job: Path | str,
    options: JobOptions,
    *,
    processes: int = 1,
    locked: bool = False,
    tie: str = "leash",
) -> list[str]:
    """Return the command that runs `job` with `python`.

    processes: how many ranks torchrun starts where the job has no GPUs; with GPUs it is one a GPU. locked: the host
    holds the machine's lock itself. tie: how the worker notices that nobody waits any more: by the end of its stdin
    ("leash"), or by a file that is no longer touched ("heartbeat").
    """
    worker = ["drupe.core.worker", str(job)]
    worker += ["--exclusive"] if options.exclusive else []
    worker += ["--locked"] if locked else []
    worker += [f"--{tie}"]
    gpus = int(options.resources.gpus)
    match options.launcher if launched(options, processes) else None:
        case "accelerate" if not options.resources.gpus and processes > 1:
            # Without GPUs accelerate starts several processes through MPI only; torchrun's it takes for its own.
            python = ["env", "ACCELERATE_USE_CPU=true", *python]
            launcher = _torchrun(processes)
        case "torchrun":
            launcher = _torchrun(gpus or processes)
        case "accelerate":
            launcher = ["-m", "accelerate.commands.launch", "--num_machines=1", f"--num_processes={gpus or 1}"]
            launcher += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
            launcher += ["--multi_gpu", "-m"] if gpus > 1 else ["-m"] if options.resources.gpus else ["--cpu", "-m"]
        case _:
            launcher = ["-m"]
    return [*python, *launcher, *worker]


def _torchrun(ranks: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]


def missing_launcher(log: str) -> str | None:
    """Return what to say where a job's log shows that its launcher is not installed; None otherwise."""
    for module, package in (("torch.distributed.run", "torch"), ("accelerate.commands.launch", "accelerate")):
        signs = (f"module specification for '{module}'", f"No module named {module}", f"No module named '{module}'")
        if any(sign in log for sign in signs):
            return f"the launcher {module} is not installed where the job runs; pip install {package} there"
    return None

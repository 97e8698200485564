"""Checkpoints of a training run: all that is needed to go on as if nothing had happened; published by rename."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

__all__ = ["CHECKPOINT_SECONDS", "Checkpoints"]

CHECKPOINT_SECONDS = 30.0
"""How often one is written where nothing else is said."""


class Checkpoints:
    """The checkpoints of one run, below `folder`. A half-written one is never seen as a checkpoint."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.stem[5:]) for path in self.folder.glob("step-*.pt"))

    def save(self, step: int, state: dict[str, Any], best: bool = False) -> None:
        """Write the state after `step` steps; older ones beyond `keep` go. best: kept as the best one as well."""
        import torch

        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:08d}.pt"
        partial = self.folder / f".partial-{os.getpid()}.pt"
        try:
            with partial.open("wb") as handle:
                torch.save(state, handle)
                handle.flush()
                os.fsync(handle.fileno())
            if best:
                copy = self.folder / f".best-{os.getpid()}.pt"
                shutil.copyfile(partial, copy)
                copy.replace(self.folder / "best.pt")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        for old in self.steps()[: -self.keep]:
            (self.folder / f"step-{old:08d}.pt").unlink(missing_ok=True)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Return (steps done, state) of the newest checkpoint that can be read, or None."""
        for step in reversed(self.steps()):
            state = self._read(self.folder / f"step-{step:08d}.pt")
            if state is not None:
                return step, state
        return None

    def best(self) -> dict[str, Any] | None:
        """Return the state of the best checkpoint, or None."""
        path = self.folder / "best.pt"
        return self._read(path) if path.is_file() else None

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        import pickle
        import zipfile

        import torch

        # A disk that lost its last writes: an older checkpoint, or the start, is as good a place to go on from.
        if not zipfile.is_zipfile(path):
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        return state if isinstance(state, dict) else None

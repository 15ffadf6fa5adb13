"""Where a run of the loop has got to, on disk: whole or not at all, and only ever taken up by the same run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

FORMAT = 1
_FILE = "loop.pt"
_TEMPORARY = ".tmp-"


class CheckpointMismatch(ValueError):
    """The folder holds the checkpoint of another run."""

    def __init__(self, path: Path, name: str, found: object, expected: object) -> None:
        super().__init__(
            f"{path} is of another run: {name} is {found!r}, expected {expected!r}; remove it to start over"
        )
        self.path, self.name = path, name


class Checkpoint:
    """One run's checkpoint: model, optimizers, torch's generators and the step. The newest one is kept.

    Batches are functions of their index (see `models.train.loop.run`), so the step is also the state of the data's
    order. A file is written beside the old one, synced, and renamed over it; a crash leaves the one or the other.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        """`identity` names what makes a run the same run; it must survive JSON."""
        self._path = folder / _FILE
        self._identity: dict[str, Any] = json.loads(
            json.dumps({"format": FORMAT, "torch": torch.__version__, **identity})
        )
        self._saved_s = time.monotonic()

    def load(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> int:
        """Put back what was saved and return the steps done; 0, with nothing touched, when nothing was.

        Raises CheckpointMismatch for the checkpoint of a run with another identity.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in self._path.parent.glob(f"{_TEMPORARY}*"):
            leftover.unlink(missing_ok=True)
        if not self._path.exists():
            return 0
        state: dict[str, Any] = torch.load(self._path, weights_only=True, map_location="cpu")
        found = state["identity"]
        for name in sorted({*found, *self._identity}):
            if found.get(name) != self._identity.get(name):
                raise CheckpointMismatch(self._path, name, found.get(name), self._identity.get(name))
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        return int(state["step"])

    def due(self, step: int, every_steps: int, every_s: float) -> bool:
        """Whether it is time to save after `step` steps."""
        return step % every_steps == 0 or time.monotonic() - self._saved_s >= every_s

    def save(self, step: int, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Replace the checkpoint by the run's state after `step` steps."""
        on_cuda = any(parameter.is_cuda for parameter in model.parameters())
        state = {
            "identity": self._identity,
            "step": step,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if on_cuda else [],
        }
        temporary = self._path.with_name(f"{_TEMPORARY}{os.getpid()}-{_FILE}")
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._saved_s = time.monotonic()

"""What is known of a member at one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class History:
    """A member's latest actions, oldest first: four columns of one length."""

    keys: NDArray[np.int64]
    actions: NDArray[np.uint32]
    """Action masks: bit i is the schema's i-th action."""
    values: NDArray[np.float32]
    """The event's value; nan where it had none."""
    ts_ms: NDArray[np.int64]

    def __post_init__(self) -> None:
        lengths = {len(self.keys), len(self.actions), len(self.values), len(self.ts_ms)}
        if len(lengths) != 1:
            raise ValueError(f"history columns have lengths {sorted(lengths)}; expected one length")

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls) -> History:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    def last(self, length: int) -> History:
        """Return the newest `length` entries."""
        start = max(0, len(self.keys) - length)
        return History(self.keys[start:], self.actions[start:], self.values[start:], self.ts_ms[start:])


@dataclass(frozen=True, slots=True)
class UserState:
    """A member's attributes and history; the default is a member nothing is known of."""

    profile: Mapping[str, object] = field(default_factory=dict)
    history: History = field(default_factory=History.empty)

"""Which entries of a history are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Interactions that are not in a prompt, by reason."""

    other_actions: int = 0
    """None of the actions that the task reads."""
    max_entries: int = 0
    """Older than the newest `max_entries`."""
    budget: int = 0
    """No room among the tokens."""


def fit_entries(size: Callable[[int], int], first: Sequence[bool], room: int) -> list[int]:
    """Return the places of the entries that fit into `room` tokens, ascending.

    Entries are oldest first; `size` counts the tokens of one, and is asked only of those that may fit. Those marked
    `first` are taken before the others, in both the newest before the older; the first that does not fit ends its
    kind, so that what is told is the newest without holes.
    """
    taken: list[int] = []
    for kind in (True, False):
        for place in range(len(first) - 1, -1, -1):
            if first[place] is not kind:
                continue
            tokens = size(place)
            if tokens > room:
                break
            room -= tokens
            taken.append(place)
    return sorted(taken)

"""Learned links as a source of candidates: a member's links become one filter, and their weights scores in the scan.

    score_i = q . vector_i  +  scale * sum of the weights of the member's links that reach item i

over the items that any of them reaches: weighted attribute matching, which the paper serves without weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from index.boosts import Boost
from index.filter import And, AnyOf, Filter, Or
from models.retrieval.links.liquidity import choose_by_reach
from models.retrieval.links.matching import LinkSet, Side
from models.retrieval.links.rows import Link

MAX_LINKS = 64
"""Links of one member that are asked for at most: each is a filter of its own in the scan."""
ENOUGH_FACTOR = 5
"""Links are added until they reach so many times the candidates that are wanted; twice that is their budget."""


@dataclass(frozen=True, slots=True)
class LinkQuery:
    """What a member's links ask of the index."""

    filter: Filter
    """Whatever any of them reaches."""
    boosts: tuple[Boost, ...]


class LinkSource:
    """One version of the links, ready to be asked. Never changes; another version takes its place."""

    def __init__(self, links: Sequence[Link], version: str, *, scale: float) -> None:
        """scale: what a link's weight, in log-odds, is worth beside an inner product of unit vectors."""
        self.version = version
        self._links = LinkSet(links)
        self._scale = scale

    def __len__(self) -> int:
        return len(self._links)

    def query(self, profile: Mapping[str, object], wanted: int) -> LinkQuery | None:
        """Return what to ask for a member; None where no link holds of the profile."""
        enough = ENOUGH_FACTOR * wanted
        chosen = choose_by_reach(self._links, profile, enough=enough, budget=2 * enough)[:MAX_LINKS]
        if not chosen:
            return None
        # Two links may reach the same items for different reasons: one filter then, and both weights.
        filters: dict[Filter, float] = {}
        for link in chosen:
            side = _filter_of(link.item_side)
            filters[side] = filters.get(side, 0.0) + self._scale * link.weight
        boosts = tuple(Boost(filter, weight) for filter, weight in filters.items())
        return LinkQuery(Or(tuple(filters)) if len(filters) > 1 else next(iter(filters)), boosts)


def within(filter: Filter | None, reached: Filter) -> Filter:
    """Return the request's own filter and what the links reach, both."""
    return reached if filter is None else And((filter, reached))


def _filter_of(side: Side) -> Filter:
    clauses: tuple[Filter, ...] = tuple(AnyOf(name, (value,)) for name, value in side)
    return And(clauses) if len(clauses) > 1 else clauses[0]

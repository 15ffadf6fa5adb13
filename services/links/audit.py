"""What every link is worth today: whom it holds of, what it reaches, what has come of it in a window of events."""

# F = links

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.retrieval.links.matching import ItemPostings, LinkSet
from models.retrieval.links.mining import LabelledPairs
from models.retrieval.links.rows import Link
from models.retrieval.links.templates import Rows


@dataclass(frozen=True, slots=True)
class Audit:
    """Five columns of one length beside the links."""

    links: tuple[Link, ...]
    members: NDArray[np.int64]
    """Members that the link holds of."""
    reach: NDArray[np.int64]
    """Items that it reaches today."""
    hires: NDArray[np.int64]
    """Confirmed pairs that it holds of."""
    refusals: NDArray[np.int64]
    base_rate: float
    """Share of all pairs that were confirmed."""

    def findings(self, place: int) -> list[str]:
        """Return what a person should look at in one link, in words."""
        link, hires, refusals = self.links[place], int(self.hires[place]), int(self.refusals[place])
        found = []
        if not link.enabled:
            found.append("switched off")
        if not self.reach[place]:
            found.append("reaches no item")
        if not self.members[place]:
            found.append("holds of no member")
        if hires + refusals >= 10 and hires < self.base_rate * (hires + refusals):
            found.append("confirmed less often than pairs are in general")
        if hires + refusals == 0 and self.reach[place] and self.members[place]:
            found.append("nothing has come of it")
        return found


def audit_links(links: Sequence[Link], profiles: Rows, items: Rows, pairs: LabelledPairs) -> Audit:
    """Count every link, also those that are switched off, on profiles, items and labelled pairs of both."""
    everything = LinkSet([replace(link, enabled=True) for link in links])
    places = {link.id: place for place, link in enumerate(everything.links)}
    postings = ItemPostings(items)
    reached = [set(postings.rows(link.item_side).tolist()) for link in everything.links]
    held = [[places[link.id] for link in everything.links_of(profile)] for profile in profiles]
    counts = np.zeros((2, len(places)), np.int64)
    for member, item, hired in zip(pairs.members.tolist(), pairs.items.tolist(), pairs.hired.tolist(), strict=True):
        for place in held[member]:
            if item in reached[place]:
                counts[0 if hired else 1, place] += 1
    members = np.bincount([place for each in held for place in each], minlength=len(places)).astype(np.int64)
    return Audit(
        tuple(links), members, np.array([len(each) for each in reached], np.int64), counts[0], counts[1],
        float(pairs.hired.mean()) if len(pairs) else 0.0,
    )  # fmt: skip

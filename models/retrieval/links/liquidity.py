"""Which of a member's links are used: as many as it takes to reach enough items, within a budget of items to score.

"Learning to Retrieve for Job Matching" (arXiv 2402.13435) section 3.3: the links are pruned far, and each member's are
added back greedily, best first, until the member reaches enough items or has no more.
"""

# F = links of one member

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.retrieval.links.matching import LinkSet, Side
from models.retrieval.links.rows import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class LiquidityConfig:
    enough: int
    """Items that a member should reach (the paper's theta)."""
    budget: int
    """Items that may be scored for a member: the sum of the links' reaches, items that two reach counted twice."""
    unit: Literal["segment", "link"] = "segment"
    """What is added at a time: all links of one segment of members, best mean weight first, as the paper serves them;
    or single links, the heaviest first, as its Algorithm 1 is printed."""

    def __post_init__(self) -> None:
        if not 1 <= self.enough <= self.budget:
            raise ValueError(f"enough {self.enough}, budget {self.budget}; expected 1 <= enough <= budget")


@dataclass(frozen=True, slots=True)
class Chosen:
    links: tuple[Link, ...]
    """In the order in which they were added."""
    reached: NDArray[np.int64]
    """Places of the items reached, ascending."""
    num_to_score: int
    """Sum of the links' reaches."""
    enough: bool


def choose_links(
    links: LinkSet,
    profile: Mapping[str, object],
    rows: Callable[[Side], NDArray[np.int64]],
    config: LiquidityConfig,
) -> Chosen:
    """Return the links used for a member; none for one that no link knows.

    rows: the items that an item side holds of. What does not fit the budget is passed over for what does.
    """
    chosen: list[Link] = []
    reached = np.zeros(0, np.int64)
    spent = 0
    for group in _groups(links, profile, config.unit):
        if len(reached) >= config.enough:
            break
        lists = [rows(link.item_side) for link in group]
        cost = sum(len(each) for each in lists)
        if not cost or spent + cost > config.budget:
            continue
        chosen += group
        spent += cost
        reached = np.unique(np.concatenate([reached, *lists]))
    return Chosen(tuple(chosen), reached, spent, len(reached) >= config.enough)


def choose_by_reach(links: LinkSet, profile: Mapping[str, object], *, enough: int, budget: int) -> list[Link]:
    """As `choose_links` with single links, by the reach that they had when they were mined, without any items at hand.

    Overlaps are unknown, so the reaches are added: a member may reach somewhat fewer than `enough`. A link that a
    person wrote, whose reach nobody counted, costs nothing.
    """
    chosen: list[Link] = []
    spent = 0
    for link in links.links_of(profile):
        if spent >= enough:
            break
        if spent + link.reach <= budget:
            chosen.append(link)
            spent += link.reach
    return chosen


def _groups(links: LinkSet, profile: Mapping[str, object], unit: str) -> list[list[Link]]:
    if unit == "link":
        return [[link] for link in links.links_of(profile)]
    groups = [[links.links[place] for place in links.segments[segment][1]] for segment in links.segments_of(profile)]
    return sorted(groups, key=lambda group: -float(np.mean([link.weight for link in group])))

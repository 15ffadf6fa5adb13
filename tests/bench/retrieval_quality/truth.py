"""Mined links beside the rules of the world that they were mined in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.retrieval.links.matching import LinkSet
from models.retrieval.links.mining import LabelledPairs
from models.retrieval.links.rows import Link, MetaLink
from models.retrieval.links.templates import Rows


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of links and rules as sets of pairs of values."""

    precision: float
    """Share of the links that are a rule, exactly: no pair more, no pair less."""
    implied: float
    """Share of the links that imply a rule: a rule, or one with further conditions, so that all they reach qualify."""
    recall: float
    """Share of the rules with at least `min_support` hires in the data that are a link, exactly."""
    recall_of_all: float
    """Share of all rules of the world, those that nobody was hired by among them."""
    num_supported: int


def compare_with_rules(
    links: Sequence[Link], rules: Iterable[Link], members: Rows, items: Rows, pairs: LabelledPairs, min_support: int
) -> Agreement:
    known = {frozenset(rule.pairs): rule for rule in rules}
    found = [frozenset(link.pairs) for link in links]
    hires = count_hires(list(known.values()), members, items, pairs)
    supported = {pairs_of for pairs_of, rule in known.items() if hires[rule.id] >= min_support}
    return Agreement(
        precision=float(np.mean([each in known for each in found])) if found else float("nan"),
        implied=float(np.mean([any(rule <= each for rule in known) for each in found])) if found else float("nan"),
        recall=len(supported & set(found)) / max(1, len(supported)),
        recall_of_all=len(known.keys() & set(found)) / max(1, len(known)),
        num_supported=len(supported),
    )


def count_hires(rules: Sequence[Link], members: Rows, items: Rows, pairs: LabelledPairs) -> dict[str, int]:
    """The hires that each rule holds of, by its id."""
    counts = {rule.id: 0 for rule in rules}
    of_members = LinkSet(rules)
    hired = pairs.take(pairs.hired)
    for member, item in zip(hired.members.tolist(), hired.items.tolist(), strict=True):
        job = items[item]
        for rule in of_members.links_of(members[member]):
            if all(_has(job, name, value) for name, value in rule.item_side):
                counts[rule.id] += 1
    return counts


def rules_as_links(rules: Iterable[tuple[tuple[tuple[str, str, str, str], ...], float]]) -> list[Link]:
    return [Link(pairs=tuple(MetaLink(*pair) for pair in pairs), weight=weight) for pairs, weight in rules]


def _has(row: object, name: str, value: object) -> bool:
    found = row.get(name)  # type: ignore[attr-defined]
    return value in found if isinstance(found, list) else value == found

"""Mining of links: candidates from confirmed hires, filters by support and quality, weights by L1.

"Learning to Retrieve for Job Matching" (arXiv 2402.13435) section 3.2. Departures:
- The subsets of a hire's meta links are found level by level up to `max_size`, not all 2^k - 1 of them.
- Of links that hold of exactly the same pairs the shortest is kept: an L1 penalty cannot choose between them.
- Longer links pay a larger penalty, and weights may be required to be non-negative: a link that would only repair
  another one by a weight below 0 cannot retrieve anything. Non-hires that are sampled are few beside the ones that
  could be drawn, so the paper's "more no-hires than hires" is asked of shares, not of counts.
- The penalty is the largest whose loss on the newest pairs is within a standard error of the best.
"""

# N = pairs, F = candidate links, K = meta links of a pair

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.retrieval.links.candidates import CandidateLinks, Entries
from models.retrieval.links.matching import ItemPostings
from models.retrieval.links.rows import Link
from models.retrieval.links.templates import LinkTemplate, MetaLinks, Rows
from models.retrieval.links.weights import Design, Fit, fit_l1, largest_l1

_TO_CHOOSE = 1e-2  # tolerance of the fits that only choose the penalty


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningConfig:
    templates: tuple[LinkTemplate, ...]
    max_size: int = 2
    """Meta links of one link."""
    min_support: int = 3
    """Hires that a link must hold of (the paper: 3)."""
    max_per_pair: int = 16
    """Meta links of one pair that are looked at, the most frequent first."""
    min_lift: float = 1.0
    """A link's share of the hires over its share of the others must be larger than this."""
    non_negative: bool = True
    length_penalty: float = 0.2
    """What each further meta link adds to the penalty of a link, relative to that of one."""
    l1_steps: tuple[float, ...] = (0.1, 0.03, 0.01, 0.006, 0.003, 0.002, 0.001, 0.0005)
    """Penalties that are tried, the largest first, relative to the one with which no link is left."""
    rounds: int = 3
    """Fits with one penalty: each after the first divides a link's penalty by its weight in the one before, so that a
    heavy link is no longer shrunk and a light one goes (Candes, Wakin and Boyd 2008)."""
    holdout_share: float = 0.2
    """Part of the pairs, the newest, on which the penalty is chosen."""
    min_weight: float = math.log(2.0)
    """Links that weigh no more than this, in log-odds, are dropped (the paper's tau): those that do not double the
    odds."""

    def __post_init__(self) -> None:
        if self.max_size < 1 or self.min_support < 1 or self.max_per_pair < 1:
            raise ValueError(
                f"max_size {self.max_size}, min_support {self.min_support}, max_per_pair {self.max_per_pair}; "
                "expected at least 1 each"
            )
        if not self.l1_steps or not all(0 < step < 1 for step in self.l1_steps):
            raise ValueError(f"l1_steps is {self.l1_steps}; expected numbers between 0 and 1")
        if not 0 < self.holdout_share < 1:
            raise ValueError(f"holdout_share is {self.holdout_share}; expected a number between 0 and 1")


@dataclass(frozen=True, slots=True)
class LabelledPairs:
    """Pairs of members and items as places in their rows, in order of time."""

    members: NDArray[np.int64]
    items: NDArray[np.int64]
    hired: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.hired)

    def take(self, rows: NDArray[np.bool_] | slice) -> LabelledPairs:
        return LabelledPairs(self.members[rows], self.items[rows], self.hired[rows])


@dataclass(frozen=True, slots=True)
class Mined:
    links: tuple[Link, ...]
    intercept: float
    """The log-odds of a hire of a pair of the training data that no link holds of."""
    figures: Mapping[str, float]
    """How many there were at each step, the penalty chosen, and what it was chosen by."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Candidate links that have passed the filters, with what they were counted on."""

    candidates: CandidateLinks
    kept: NDArray[np.int64]
    """int64[F]: places among the candidates."""
    design: Design
    """Of the pairs by the kept links."""
    hired: NDArray[np.bool_]
    hires: NDArray[np.int64]
    """int64[F]: the hires that each kept link holds of."""
    refusals: NDArray[np.int64]
    figures: Mapping[str, float]


class NothingToMine(ValueError):
    """There are no hires, or nothing but hires; the message says so."""


def mine_links(config: MiningConfig, members: Rows, items: Rows, pairs: LabelledPairs) -> Mined:
    """Return the links of what led to hires, the heaviest first. The same input gives the same links.

    Raises NothingToMine where no pair is a hire, or all are.
    """
    began = time.perf_counter()
    meta_links = MetaLinks(config.templates, members, items)
    counted = count_links(config, meta_links, pairs)
    if not len(counted.kept):
        return Mined((), 0.0, {**counted.figures, "links": 0.0, "seconds": time.perf_counter() - began})
    fit, chosen = choose_weights(config, counted)
    links = links_of(config, counted, meta_links, fit.weights, items)
    figures = {**counted.figures, **chosen, "links": float(len(links)), "seconds": time.perf_counter() - began}
    return Mined(tuple(links), fit.intercept, figures)


def count_links(config: MiningConfig, meta_links: MetaLinks, pairs: LabelledPairs) -> Counted:
    """Find the candidates among the hires, count them among the others, and apply the filters."""
    num_hires = int(pairs.hired.sum())
    if not 0 < num_hires < len(pairs):
        raise NothingToMine(
            f"{num_hires} of {len(pairs)} pairs are hires; links need some that are and some that are not"
        )
    codes_NK = meta_links.of_pairs(pairs.members, pairs.items)
    candidates = CandidateLinks(
        codes_NK[pairs.hired],
        max_size=config.max_size,
        min_support=config.min_support,
        max_per_pair=config.max_per_pair,
    )
    entries = candidates.match(codes_NK)
    total = np.bincount(entries.links, minlength=len(candidates))
    hires = np.bincount(entries.links[pairs.hired[entries.rows]], minlength=len(candidates))
    refusals = total - hires
    lifted = hires * (len(pairs) - num_hires) > config.min_lift * refusals * num_hires
    shortest = _first_of_equal_columns(entries, len(pairs), len(candidates))
    kept = np.flatnonzero(lifted & shortest & (hires >= config.min_support))
    design = Design(entries, len(pairs), len(candidates)).take(kept)
    figures = {
        "hires": num_hires,
        "others": len(pairs) - num_hires,
        "pairs_cut": candidates.num_cut,
        "candidates": len(candidates),
        "candidates_lifted": int(lifted.sum()),
        "candidates_different": len(kept),
    }
    return Counted(
        candidates, kept, design, pairs.hired, hires[kept], refusals[kept],
        {name: float(value) for name, value in figures.items()},
    )  # fmt: skip


def choose_weights(config: MiningConfig, counted: Counted) -> tuple[Fit, dict[str, float]]:
    """Fit with every penalty on the older pairs, and with the one best on the newest on all of them."""
    sizes = counted.candidates.sizes()[counted.kept]
    penalties = (1.0 + config.length_penalty * (sizes - 1)).astype(np.float64)
    design, hired = counted.design, counted.hired
    old_N = np.arange(len(hired)) < round((1.0 - config.holdout_share) * len(hired))
    new_N = ~old_N
    if not 0 < hired[old_N].sum() < old_N.sum() or not new_N.any():
        old_N = new_N = np.ones(len(hired), np.bool_)  # too few to hold any out: judged on what they were made of
    old, old_hired = design.take_rows(old_N), hired[old_N]
    new, new_hired = design.take_rows(new_N), hired[new_N]
    largest = largest_l1(old, old_hired, penalties)
    steps = sorted(config.l1_steps, reverse=True)
    losses: list[NDArray[np.float64]] = []
    first: Fit | None = None
    for step in steps:
        first = fit_l1(
            old, old_hired, penalties, step * largest,
            non_negative=config.non_negative, start=first, tolerance=_TO_CHOOSE,
        )  # fmt: skip
        fit = _refit(config, old, old_hired, penalties, step * largest, first)
        losses.append(_log_losses(new.times(fit.weights) + fit.intercept, new_hired))
        if len(losses) > 1 and losses[-1].mean() > losses[-2].mean():
            break  # from here on they learn the old pairs by heart
    best = _largest_as_good(losses)
    l1 = steps[best] * largest
    first = fit_l1(design, hired, penalties, l1, non_negative=config.non_negative)
    final = _refit(config, design, hired, penalties, l1, first)
    return final, {
        "l1": l1,
        "l1_step": steps[best],
        "holdout_log_loss": float(losses[best].mean()),
        "optimum_violation": final.violation,
    }


def _refit(
    config: MiningConfig, design: Design, hired: NDArray[np.bool_], penalties: NDArray[np.float64], l1: float, fit: Fit
) -> Fit:
    """Do the rounds after the first."""
    for _ in range(config.rounds - 1):
        left = np.flatnonzero(fit.weights)
        weights = np.abs(fit.weights[left])
        part = fit_l1(
            design.take(left), hired, penalties[left] / np.maximum(weights, 1e-3), l1,
            non_negative=config.non_negative, start=replace(fit, weights=fit.weights[left]),
        )  # fmt: skip
        expanded = np.zeros(design.num_links)
        expanded[left] = part.weights
        fit = replace(part, weights=expanded)
    return fit


def links_of(
    config: MiningConfig, counted: Counted, meta_links: MetaLinks, weights: NDArray[np.float64], items: Rows
) -> list[Link]:
    """Return the links that weigh more than the config's least, the heaviest first."""
    postings = ItemPostings(items)
    links = []
    for place in np.flatnonzero(weights > config.min_weight).tolist():
        codes = counted.candidates.codes_of(int(counted.kept[place]))
        link = Link(
            pairs=tuple(meta_links.decode(code) for code in codes),
            weight=float(weights[place]),
            hires=int(counted.hires[place]),
            refusals=int(counted.refusals[place]),
        )
        links.append(postings.with_reach(link))
    return sorted(links, key=lambda link: (-link.weight, link.text))


def sample_others(
    hires: LabelledPairs, num_items: int, per_hire: int, random: np.random.Generator, known: NDArray[np.int64]
) -> LabelledPairs:
    """Return pairs of hired members and items drawn evenly, at the hires' places in time; none of `known`.

    known: pairs as member * num_items + item that may not be drawn: the hires, at least.
    """
    members = np.repeat(hires.members, per_hire)
    items = random.integers(num_items, size=len(members))
    allowed = ~np.isin(members * num_items + items, known)
    return LabelledPairs(members[allowed], items[allowed], np.zeros(int(allowed.sum()), np.bool_))


def join_pairs(parts: Sequence[tuple[LabelledPairs, NDArray[np.int64]]]) -> LabelledPairs:
    """Return all pairs of parts, each with its pairs' times in ms, in order of time."""
    times = np.concatenate([times_ms for _, times_ms in parts])
    order = np.argsort(times, kind="stable")
    return LabelledPairs(
        np.concatenate([part.members for part, _ in parts])[order],
        np.concatenate([part.items for part, _ in parts])[order],
        np.concatenate([part.hired for part, _ in parts])[order],
    )


def _first_of_equal_columns(entries: Entries, num_rows: int, num_links: int) -> NDArray[np.bool_]:
    """Return bool[num_links]: False for a link that holds of exactly the rows of an earlier, so no longer, one.

    By a 128-bit sum of random numbers of the rows: two different sets of rows agree with chance 2^-128.
    """
    random = np.random.default_rng(0)
    prints = np.zeros((num_links, 2), np.uint64)
    for column in range(2):
        numbers = random.integers(0, 1 << 64, num_rows, dtype=np.uint64)
        np.add.at(prints[:, column], entries.links, numbers[entries.rows])
    first = np.zeros(num_links, np.bool_)
    first[np.unique(prints, axis=0, return_index=True)[1]] = True
    return first


def _largest_as_good(losses: Sequence[NDArray[np.float64]]) -> int:
    """Return the first place, so the largest penalty, that is worse than the best by no more than a standard error.

    The error is that of the difference, pair by pair.
    """
    best = min(losses, key=lambda each: float(each.mean()))
    for place, each in enumerate(losses):
        difference = each - best
        if difference.mean() <= difference.std() / np.sqrt(len(difference)):
            return place
    raise AssertionError("the best is as good as itself")


def _log_losses(logits: NDArray[np.float64], hired: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(np.logaddexp(0.0, np.where(hired, -logits, logits)))

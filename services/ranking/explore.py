"""Orders that explore: which one a request gets, and how likely each of its places was."""

# n = candidates, T = tasks, M = draws, K = places

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from models.ranking.exploration import Draws
from models.ranking.propensity import best_rows, epsilon_greedy_rows, propensities
from services.candidates import Candidates
from services.datasets.ranking import ExploreSection
from services.ranking.engine import Ranking
from services.ranking.value import ValueFunction, order_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Explore:
    """How the orders of a scenario explore."""

    kind: Literal["thompson", "epsilon_greedy"]
    scale: float = 0.3
    """Of Thompson sampling's draws."""
    epsilon: float = 0.02
    """Chance of a place to be drawn evenly."""
    draws: int = 64
    """Pages drawn to estimate propensities."""

    @classmethod
    def of(cls, section: ExploreSection) -> Explore:
        """Return what a description, or a stored scenario, says."""
        return cls(**section.model_dump())

    def draws_of(self, seed: int, *, continued: bool) -> Draws | None:
        """What to ask the ranker for; a continued page has no propensities to estimate."""
        if self.kind == "epsilon_greedy":
            return None
        return Draws(seed, 0 if continued else self.draws, self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """One explored order, and what its propensities are worked out from once the answer is away."""

    order: NDArray[np.int64]
    """[n]: rows of the candidates, as they were served."""
    values: NDArray[np.float64]
    """[n]: what each candidate was ordered by."""
    explore: Explore
    seed: int
    continued: bool
    ranking: Ranking
    function: ValueFunction
    candidates: Candidates

    def propensities(self, num_places: int) -> NDArray[np.float64] | None:
        """Return f64[K]: how likely each of the first places was to hold what it held.

        None for a page that continues an earlier one: what is left for it depends on the draw that filled the first,
        so draws afresh would say how likely it was for somebody else.
        """
        if self.continued:
            return None
        if self.explore.kind == "epsilon_greedy":
            greedy = order_of(self.candidates, _values(self, self.ranking.probabilities))
            random = np.random.default_rng([self.seed, 2])
            pages_MK = epsilon_greedy_rows(greedy, self.explore.epsilon, self.explore.draws, num_places, random)
        else:
            assert self.ranking.drawn is not None
            values_Mn = np.stack([_values(self, drawn_nT) for drawn_nT in self.ranking.drawn[1:]])
            # By value, then as `order_of` has it.
            ties = np.lexsort((self.candidates.keys, -self.candidates.scores))
            pages_MK = ties[best_rows(values_Mn[:, ties], num_places)]
        return propensities(self.order[:num_places], pages_MK)


def seed_of(recommendation_id: str) -> int:
    """The seed of an answer and of those that continue it."""
    return xxh3_64_intdigest(recommendation_id.encode()) >> 1


def explored(
    explore: Explore,
    seed: int,
    continued: bool,
    num_places: int,
    ranking: Ranking,
    function: ValueFunction,
    candidates: Candidates,
) -> Explored | None:
    """Return an order of the candidates; None where there is nothing to draw from."""
    values_n = function(ranking.probabilities, ranking.tasks, candidates)
    if explore.kind == "thompson":
        if ranking.drawn is None:
            return None
        values_n = function(ranking.drawn[0], ranking.tasks, candidates)
        order = order_of(candidates, values_n)
    else:
        greedy = order_of(candidates, values_n)
        random = np.random.default_rng([seed, 1])
        first = epsilon_greedy_rows(greedy, explore.epsilon, 1, num_places, random)[0]
        order = np.concatenate([first, greedy[~np.isin(greedy, first)]])
    return Explored(
        order=order,
        values=values_n,
        explore=explore,
        seed=seed,
        continued=continued,
        ranking=ranking,
        function=function,
        candidates=candidates,
    )


def _values(explored: Explored, probabilities_nT: NDArray[np.float32]) -> NDArray[np.float64]:
    return explored.function(probabilities_nT, explored.ranking.tasks, explored.candidates)

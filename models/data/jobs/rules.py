"""The truth of a jobs world: which values of a member together with which of a job make the member qualified.

A rule is a set of links (member attribute = value -> job attribute = value) that must all hold, as mined links are:
"Learning to Retrieve for Job Matching" (arXiv 2402.13435) section 3. Here the rules come first and the hires after.
"""

# M = members, J = jobs, P = pairs, R = rules

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.jobs.vocabulary import Vocabulary, nearest_occupations

SENIORITIES = ("entry", "middle", "senior", "lead")
Pair = tuple[str, str, str, str]
"""Member attribute, its value, job attribute, its value."""


@dataclass(frozen=True, slots=True)
class Rule:
    pairs: tuple[Pair, ...]
    """Sorted; all must hold."""
    weight: float
    """What the rule adds to the log-odds of a hire, given an application."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleConfig:
    num_near: int = 2
    """Other titles that a title qualifies for."""
    graded_share: float = 0.4
    """Part of the pairs of titles that qualify only at the same seniority."""
    num_skill_rules: int = 40
    """A skill in common, within one industry, that qualifies whatever the titles are."""
    base_log_odds: float = -4.5
    """Of a hire, given an application that no rule qualifies."""
    min_weight: float = 4.0
    max_weight: float = 6.0


class Rules:
    """All rules of one world, ready to be asked about pairs of members and jobs given as codes."""

    def __init__(
        self, config: RuleConfig, vocabulary: Vocabulary, skills: Sequence[str], industries: Sequence[str],
        random: np.random.Generator,
    ) -> None:  # fmt: skip
        self.config = config
        titles = [occupation.title for occupation in vocabulary.occupations]
        self.near = nearest_occupations(vocabulary, config.num_near)
        size = len(titles)
        self._title = np.zeros((size, size))
        self._graded = np.zeros((size, size, len(SENIORITIES)))
        self._skill = np.zeros((len(skills), len(industries)))
        self.rules: list[Rule] = []
        for member, others in enumerate(self.near):
            for job in [member, *others[others >= 0].tolist()]:
                title: Pair = ("title", titles[member], "title", titles[job])
                if random.random() >= config.graded_share:
                    self._title[member, job] = weight = self._weight(random)
                    self.rules.append(Rule((title,), weight))
                    continue
                for level, name in enumerate(SENIORITIES):
                    self._graded[member, job, level] = weight = self._weight(random)
                    self.rules.append(Rule((("seniority", name, "seniority", name), title), weight))
        # Skills that many occupations share: one that a single title has says no more than the title.
        uses = np.array([sum(name in occupation.skills for occupation in vocabulary.occupations) for name in skills])
        chances = np.repeat((uses - 0.9) ** 2.0, len(industries))
        num_drawn = min(config.num_skill_rules, len(chances))
        drawn = random.choice(len(chances), num_drawn, replace=False, p=chances / chances.sum())
        for skill, industry in zip(*np.divmod(drawn, len(industries)), strict=True):
            self._skill[skill, industry] = weight = self._weight(random)
            where: Pair = ("industry", industries[industry], "industry", industries[industry])
            self.rules.append(Rule((where, ("skills", skills[skill], "skills", skills[skill])), weight))

    def hire_log_odds(
        self,
        titles_P2: NDArray[np.int64],
        seniorities_P2: NDArray[np.int64],
        industries_P2: NDArray[np.int64],
        skills_PW: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> NDArray[np.float64]:
        """Return float64[P]: the log-odds of a hire, given an application, of P pairs (member, job), as codes.

        skills_PW: the members' and the jobs' skills, -1 in unused places.
        """
        member, job = titles_P2.T
        level, wanted = seniorities_P2.T
        total_P = self._title[member, job] + np.where(level == wanted, self._graded[member, job, level], 0.0)
        mine, theirs = skills_PW
        here_P = industries_P2[:, 0] == industries_P2[:, 1]
        for column in range(mine.shape[1]):
            skill_P = mine[:, column]
            shared_P = here_P & (skill_P >= 0) & (theirs == skill_P[:, None]).any(axis=1)
            total_P = total_P + np.where(shared_P, self._skill[skill_P, industries_P2[:, 0]], 0.0)
        return np.asarray(self.config.base_log_odds + total_P)

    def _weight(self, random: np.random.Generator) -> float:
        return float(random.uniform(self.config.min_weight, self.config.max_weight))

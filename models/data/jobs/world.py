"""Members and jobs of a jobs world. Everything in it is synthetic but the words of its vocabulary."""

# M = members, J = jobs, S = skills, W = skills of one member or job, at most

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.data.jobs.rules import SENIORITIES, RuleConfig, Rules
from models.data.jobs.vocabulary import Vocabulary

DAY_MS = 86_400_000
START_MS = 1_767_225_600_000  # 2026-01-01, a date like any other
INDUSTRIES = (
    "banking", "construction", "education", "energy", "farming", "government", "hospitals", "hotels", "insurance",
    "media", "retail", "transport",
)  # fmt: skip
REGIONS = ("north", "east", "south", "west", "coast", "capital", "islands", "hills")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsConfig:
    num_members: int = 20_000
    num_jobs: int = 6_000
    num_occupations: int = 100
    num_companies: int = 400
    num_days: int = 40
    skills_kept: float = 0.5
    """Chance of each skill of an occupation to stand in a profile or a job."""
    max_skills: int = 12
    popularity_exponent: float = 0.7
    """A company's popularity falls with its rank to this power."""
    sessions_per_day: float = 0.3
    page_length: int = 10
    examination_decay: float = 0.85
    """Position bias: the chance that a place is looked at, relative to the place above."""
    max_applications: int = 20
    """Of a member, over the whole time."""
    mean_budget: float = 40.0
    """Applicants that a job pays for, on average; after the last one it is shown no more."""
    missing_share: float = 0.0
    """Chance of each attribute of members and jobs to be hidden from everyone but the truth."""
    rules: RuleConfig = field(default_factory=RuleConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_members", "num_jobs", "num_occupations", "num_companies", "num_days", "page_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0.0 <= self.missing_share < 1.0:
            raise ValueError(f"missing_share is {self.missing_share}; expected 0 to below 1")


@dataclass(frozen=True, slots=True)
class Side:
    """Members or jobs as codes."""

    titles: NDArray[np.int64]
    seniorities: NDArray[np.int64]
    industries: NDArray[np.int64]
    regions: NDArray[np.int64]
    skills: NDArray[np.int64]
    """int64[n, W]: -1 in unused places."""

    def __len__(self) -> int:
        return len(self.titles)


class JobsWorld:
    """Who and what there is, and the truth of who qualifies."""

    def __init__(self, vocabulary: Vocabulary, config: JobsConfig | None = None) -> None:
        self.config = config = config or JobsConfig()
        self.random = random = np.random.default_rng(config.seed)
        self.vocabulary = vocabulary.sample(config.num_occupations, random)
        occupations = self.vocabulary.occupations
        self.skill_names = list(dict.fromkeys(skill for occupation in occupations for skill in occupation.skills))
        places = {skill: place for place, skill in enumerate(self.skill_names)}
        self._skills_of = [np.array([places[skill] for skill in occupation.skills]) for occupation in occupations]
        self.rules = Rules(config.rules, self.vocabulary, self.skill_names, INDUSTRIES, random)
        self._demand = _zipf(len(occupations), 0.6)[random.permutation(len(occupations))]
        # An occupation has its home industries: that is what makes an industry a false friend of the miner.
        self._home = random.integers(len(INDUSTRIES), size=(len(occupations), 3))
        self.members = self._side(config.num_members)
        self.companies = random.integers(config.num_companies, size=config.num_jobs)
        company_industries = random.integers(len(INDUSTRIES), size=config.num_companies)
        jobs = self._side(config.num_jobs)
        stays = random.random(config.num_jobs) < 0.5
        jobs.industries[stays] = company_industries[self.companies[stays]]
        self.jobs = jobs
        noise_J = random.lognormal(0.0, 0.5, config.num_jobs)
        self.popularity = _zipf(config.num_companies, config.popularity_exponent)[self.companies] * noise_J
        self.budgets = random.poisson(config.mean_budget - 1.0, config.num_jobs) + 1
        self.openings = np.maximum(1, self.budgets // 4)
        before_days = 0.5 * config.num_days
        self.posted_ms = START_MS + np.round(
            DAY_MS * np.clip(random.uniform(-before_days, config.num_days, config.num_jobs), 0, None)
        ).astype(np.int64)
        self.aspired = random.integers(len(occupations), size=config.num_members)
        """A title that the member would rather have, qualified or not."""

    def hire_chances(self, members: NDArray[np.int64], jobs: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return float64[n]: the truth, the chance of a hire if the member applied to the job."""
        return np.asarray(1.0 / (1.0 + np.exp(-self._log_odds(members, jobs))))

    def qualified(self, members: NDArray[np.int64], jobs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]: whether any rule holds of the pair."""
        return np.asarray(self._log_odds(members, jobs) > self.config.rules.base_log_odds)

    def member_ids(self) -> list[str]:
        return [f"member-{place:06d}" for place in range(len(self.members))]

    def job_ids(self) -> list[str]:
        return [f"job-{place:06d}" for place in range(len(self.jobs))]

    def member_attributes(self) -> list[dict[str, object]]:
        """Return the members' profiles, in the words of `configs/jobs.toml`."""
        return self._attributes(self.members, np.random.default_rng((self.config.seed, 1)))

    def job_attributes(self) -> list[dict[str, object]]:
        """Return the jobs' attributes, in the words of `configs/jobs.toml`."""
        rows = self._attributes(self.jobs, np.random.default_rng((self.config.seed, 2)))
        for place, row in enumerate(rows):
            row["company"] = f"company {self.companies[place]}"
            row["posted"] = int(self.posted_ms[place])
            what = " ".join(str(row[name]) for name in ("seniority", "title") if name in row) or "a job"
            row["headline"] = f"{what} at {row['company']}"
        return rows

    def _log_odds(self, members: NDArray[np.int64], jobs: NDArray[np.int64]) -> NDArray[np.float64]:
        mine, theirs = self.members, self.jobs
        return self.rules.hire_log_odds(
            np.stack([mine.titles[members], theirs.titles[jobs]], axis=1),
            np.stack([mine.seniorities[members], theirs.seniorities[jobs]], axis=1),
            np.stack([mine.industries[members], theirs.industries[jobs]], axis=1),
            (mine.skills[members], theirs.skills[jobs]),
        )

    def _side(self, size: int) -> Side:
        random, config = self.random, self.config
        titles = random.choice(len(self._demand), size, p=self._demand)
        home = self._home[titles, random.integers(self._home.shape[1], size=size)]
        industries = np.where(random.random(size) < 0.7, home, random.integers(len(INDUSTRIES), size=size))
        skills = np.full((size, config.max_skills), -1, np.int64)
        for place, title in enumerate(titles):
            known = self._skills_of[title]
            kept = known[random.random(len(known)) < config.skills_kept]
            # One more, of anyone's: profiles are not as clean as vocabularies.
            extra = random.integers(len(self.skill_names), size=1)
            kept = np.unique(np.concatenate([random.permutation(kept)[: config.max_skills - 1], extra]))
            skills[place, : len(kept)] = kept
        return Side(
            titles,
            random.choice(len(SENIORITIES), size, p=(0.25, 0.35, 0.28, 0.12)),
            industries,
            random.choice(len(REGIONS), size, p=_zipf(len(REGIONS), 0.8)),
            skills,
        )

    def _attributes(self, side: Side, random: np.random.Generator) -> list[dict[str, object]]:
        hidden = random.random((len(side), 5)) < self.config.missing_share
        titles = [occupation.title for occupation in self.vocabulary.occupations]
        named: Sequence[tuple[str, Sequence[str], NDArray[np.int64]]] = (
            ("title", titles, side.titles),
            ("seniority", SENIORITIES, side.seniorities),
            ("industry", INDUSTRIES, side.industries),
            ("region", REGIONS, side.regions),
        )
        rows: list[dict[str, object]] = []
        for place in range(len(side)):
            row: dict[str, object] = {
                name: words[codes[place]]
                for column, (name, words, codes) in enumerate(named)
                if not hidden[place, column]
            }
            if not hidden[place, 4]:
                row["skills"] = [self.skill_names[code] for code in side.skills[place] if code >= 0]
            rows.append(row)
        return rows


def _zipf(size: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, size + 1) ** -exponent
    return np.asarray(weights / weights.sum())

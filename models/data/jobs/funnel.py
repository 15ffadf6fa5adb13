"""The funnel of a jobs world, day by day: impression, click, application, hire.

What is shown is drawn from a member's interests, from popularity and from everything, and then ordered by a noisy
guess of interest: so the log has a position bias and a popularity bias, and says little of what was never shown.
"""

# M = members, J = jobs, P = impressions of one day, T = titles

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.jobs.world import DAY_MS, START_MS, JobsWorld

TYPES = ("impression", "click", "apply", "hire")
_INTERESTS, _POPULAR = 0.55, 0.25  # parts of what is shown; the rest is drawn evenly
_MAX_HIRE_DELAY_MS = 4 * DAY_MS


@dataclass(frozen=True, slots=True)
class FunnelEvents:
    """Events in order of time: five columns of one length."""

    members: NDArray[np.int64]
    jobs: NDArray[np.int64]
    types: NDArray[np.int64]
    """Places in TYPES."""
    ts_ms: NDArray[np.int64]
    positions: NDArray[np.int64]
    """Place on the page, from 0; -1 for a hire."""

    def __len__(self) -> int:
        return len(self.ts_ms)

    def of(self, name: str) -> FunnelEvents:
        """Return the events of one type."""
        rows = self.types == TYPES.index(name)
        return FunnelEvents(
            self.members[rows], self.jobs[rows], self.types[rows], self.ts_ms[rows], self.positions[rows]
        )


@dataclass(frozen=True, slots=True)
class _Shown:
    """What one day showed."""

    members: NDArray[np.int64]
    jobs: NDArray[np.int64]
    positions: NDArray[np.int64]
    ts_ms: NDArray[np.int64]


def run_funnel(world: JobsWorld) -> FunnelEvents:
    """Return every event of the world's days. The same world gives the same events."""
    return _Funnel(world).run()


class _Funnel:
    def __init__(self, world: JobsWorld) -> None:
        self._world, self._config = world, world.config
        self._random = np.random.default_rng((world.config.seed, 3))
        self._looking = np.ones(len(world.members), np.bool_)
        self._applications = np.zeros(len(world.members), np.int64)
        self._applicants = np.zeros(len(world.jobs), np.int64)
        self._hired = np.zeros(len(world.jobs), np.int64)
        self._applied = np.zeros(0, np.int64)  # pairs, sorted
        self._parts: list[tuple[NDArray[np.int64], ...]] = []

    def run(self) -> FunnelEvents:
        for day in range(self._config.num_days):
            shown = self._show(day)
            if shown is None:
                continue
            clicked = self._click(shown)
            self._hire(shown, self._apply(shown, clicked))
        columns = [np.concatenate(part) for part in zip(*self._parts, strict=True)]
        order = np.argsort(columns[3], kind="stable")
        return FunnelEvents(*(column[order] for column in columns))

    def _show(self, day: int) -> _Shown | None:
        world, config, random = self._world, self._config, self._random
        now_ms = START_MS + day * DAY_MS
        open_jobs = np.flatnonzero((world.posted_ms <= now_ms) & (self._applicants < world.budgets))
        visits = random.poisson(config.sessions_per_day, len(world.members)) * self._looking
        members = np.repeat(np.arange(len(visits)), visits)
        if not len(open_jobs) or not len(members):
            return None
        times_ms = now_ms + random.integers(0, DAY_MS, len(members))
        page = config.page_length
        members_P = np.repeat(members, page)
        jobs_P = self._draw(members_P, open_jobs)
        guess_P = self._interest(members_P, jobs_P) + random.gumbel(0.0, 0.7, len(jobs_P))
        order = np.lexsort((-guess_P, np.repeat(np.arange(len(members)), page)))
        shown = _Shown(
            members_P, jobs_P[order], np.tile(np.arange(page), len(members)),
            np.repeat(times_ms, page) + np.tile(np.arange(page), len(members)),
        )  # fmt: skip
        self._log("impression", shown, np.arange(len(jobs_P)), 0)
        return shown

    def _draw(self, members_P: NDArray[np.int64], open_jobs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64[P]: the jobs shown, in no order."""
        world, random = self._world, self._random
        near = world.rules.near
        wishes = np.column_stack([world.members.titles, near[world.members.titles], world.aspired])[members_P]
        picked = wishes[np.arange(len(wishes)), random.integers(wishes.shape[1], size=len(wishes))]
        titles_P = np.where(picked < 0, wishes[:, 0], picked)
        by_title = open_jobs[np.argsort(world.jobs.titles[open_jobs], kind="stable")]
        bounds_T = np.searchsorted(world.jobs.titles[by_title], np.arange(len(near) + 1))
        total = np.concatenate([[0.0], np.cumsum(world.popularity[by_title])])
        low_P, high_P = total[bounds_T[titles_P]], total[bounds_T[titles_P + 1]]
        kind_P = random.random(len(titles_P))
        wished_P = (kind_P < _INTERESTS) & (high_P > low_P)
        low_P, high_P = np.where(wished_P, low_P, 0.0), np.where(wished_P, high_P, total[-1])
        drawn_P = low_P + random.random(len(titles_P)) * (high_P - low_P)
        places_P = np.clip(np.searchsorted(total, drawn_P, side="right") - 1, 0, len(by_title) - 1)
        even_P = ~wished_P & (kind_P >= _INTERESTS + _POPULAR)
        places_P[even_P] = random.integers(len(by_title), size=int(even_P.sum()))
        return np.asarray(by_title[places_P])

    def _interest(self, members_P: NDArray[np.int64], jobs_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return float64[P]: the known preferences. They are of titles, regions and industries, not of qualifying."""
        mine, theirs = self._world.members, self._world.jobs
        title, wanted = mine.titles[members_P], theirs.titles[jobs_P]
        near_P = (self._world.rules.near[title] == wanted[:, None]).any(axis=1)
        return np.asarray(
            1.6 * (title == wanted)
            + 1.1 * near_P
            + 1.2 * (self._world.aspired[members_P] == wanted)
            + 0.7 * (mine.regions[members_P] == theirs.regions[jobs_P])
            + 0.4 * (mine.industries[members_P] == theirs.industries[jobs_P])
            + 0.3 * (theirs.seniorities[jobs_P] >= mine.seniorities[members_P])
        )

    def _click(self, shown: _Shown) -> NDArray[np.int64]:
        seen_P = self._random.random(len(shown.jobs)) < self._config.examination_decay**shown.positions
        wants_P = 1.0 / (1.0 + np.exp(2.6 - self._interest(shown.members, shown.jobs)))
        rows = np.flatnonzero(seen_P & (self._random.random(len(wants_P)) < wants_P))
        self._log("click", shown, rows, 30_000)
        return rows

    def _apply(self, shown: _Shown, clicked: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those who apply, up to the members' own limit and the applicants that the jobs pay for."""
        world, config = self._world, self._config
        members, jobs = shown.members[clicked], shown.jobs[clicked]
        wants = 1.0 / (1.0 + np.exp(2.2 - self._interest(members, jobs)))
        rows = clicked[self._random.random(len(wants)) < wants]
        rows = rows[np.argsort(shown.ts_ms[rows], kind="stable")]
        pairs = shown.members[rows] * len(world.jobs) + shown.jobs[rows]
        first = np.zeros(len(rows), np.bool_)
        first[np.unique(pairs, return_index=True)[1]] = True
        rows = rows[first & ~np.isin(pairs, self._applied)]
        members = shown.members[rows]
        rows = rows[self._applications[members] + _times_before(members) < config.max_applications]
        jobs = shown.jobs[rows]
        rows = rows[self._applicants[jobs] + _times_before(jobs) < world.budgets[jobs]]
        np.add.at(self._applications, shown.members[rows], 1)
        np.add.at(self._applicants, shown.jobs[rows], 1)
        self._applied = np.union1d(self._applied, shown.members[rows] * len(world.jobs) + shown.jobs[rows])
        self._log("apply", shown, rows, 600_000)
        return rows

    def _hire(self, shown: _Shown, applied: NDArray[np.int64]) -> None:
        """A member is hired once, and a job hires as many as it has openings; both then leave the market."""
        world = self._world
        members, jobs = shown.members[applied], shown.jobs[applied]
        rows = applied[self._random.random(len(applied)) < world.hire_chances(members, jobs)]
        rows = rows[_times_before(shown.members[rows]) == 0]
        jobs = shown.jobs[rows]
        rows = rows[self._hired[jobs] + _times_before(jobs) < world.openings[jobs]]
        np.add.at(self._hired, shown.jobs[rows], 1)
        self._looking[shown.members[rows]] = False
        delays_ms = self._random.integers(DAY_MS, _MAX_HIRE_DELAY_MS, len(rows))
        self._log("hire", _Shown(shown.members, shown.jobs, np.full(len(shown.jobs), -1), shown.ts_ms), rows, delays_ms)

    def _log(self, name: str, shown: _Shown, rows: NDArray[np.int64], delay_ms: int | NDArray[np.int64]) -> None:
        types = np.full(len(rows), TYPES.index(name))
        self._parts.append(
            (shown.members[rows], shown.jobs[rows], types, shown.ts_ms[rows] + delay_ms, shown.positions[rows])
        )


def _times_before(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[n]: how often each value stands earlier in the array."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = (
        np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else np.zeros(0, np.int64)
    )
    counts = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    before = np.empty(len(values), np.int64)
    before[order] = counts
    return before

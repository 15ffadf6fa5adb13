"""AUC over everything and within members, with intervals by resampling members."""

# n = ratings

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.evaluate import Interval, Statistic, auc_per_user, auc_statistic, bootstrap, bootstrap_mean
from tests.bench.record import Record


class Judged(NamedTuple):
    auc: Interval
    within: Interval
    """Mean over members of each one's own AUC."""
    num: int


class Jury:
    """The ratings that systems are judged on."""

    def __init__(self, labels: NDArray[np.bool_], members: NDArray[np.int64]) -> None:
        self.labels, self.members = labels, members

    def judge(self, scores: NDArray[np.float64]) -> Judged:
        return Judged(
            bootstrap(auc_statistic(scores, self.labels), self.members),
            bootstrap_mean(auc_per_user(scores, self.labels, self.members)),
            len(scores),
        )

    def compare(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Judged:
        """Return what ours has more, over the same resamples of members."""
        one, other = auc_statistic(ours, self.labels), auc_statistic(theirs, self.labels)
        within = auc_per_user(ours, self.labels, self.members) - auc_per_user(theirs, self.labels, self.members)
        return Judged(bootstrap(_less(one, other), self.members), bootstrap_mean(within), len(ours))


def add_judged(record: Record, name: str, judged: Judged) -> None:
    for what, interval in (("AUC", judged.auc), ("AUC within members", judged.within)):
        note = f"95 % interval {interval.low:.4f} to {interval.high:.4f}, {judged.num} ratings"
        record.add(f"{name}, {what}", interval.mean, "", note)


def add_all(record: Record, where: str, jury: Jury, systems: Mapping[str, NDArray[np.float64]]) -> None:
    for name, scores in systems.items():
        add_judged(record, f"{where}: {name}", jury.judge(scores))


def _less(ours: Statistic, other: Statistic) -> Statistic:
    return lambda weights: ours(weights) - other(weights)

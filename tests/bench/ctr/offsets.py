"""Popularity offsets in a replay of the test windows: what they add, and to items younger than a day."""

# N = rows

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.evaluate import Interval, Statistic, auc_statistic, bootstrap, log_loss_statistic
from models.ranking.calibration import Isotonic
from models.ranking.popularity import PopularityOffsets
from tests.bench.ctr.compare import TEST, Logits, joined, sigmoid
from tests.bench.ctr.log import PreparedLog

DAY_MS = 86_400_000


class Offsets(NamedTuple):
    """What the offsets change, with the members resampled. `young`: rows of items whose first event was less than a
    day before, or is still to come."""

    auc: Interval
    log_loss: Interval
    young_auc: Interval
    young_log_loss: Interval
    num_young: int


def replay_offsets(prepared: PreparedLog, logits: Logits) -> Offsets:
    """Walk the windows in order of time: each request is scored with the offsets that the requests before it left."""
    log = prepared.log
    isotonic = Isotonic.fit(logits["validation"].astype(np.float32), prepared.labels("validation")[:, 0])
    before_N = isotonic(joined(logits).astype(np.float32))
    after_N = before_N.copy()
    keys, first = np.unique(log.events.item_keys, return_index=True)
    born_ms = dict(zip(keys.tolist(), log.events.ts_ms[first].tolist(), strict=True))
    young_N = np.zeros(len(before_N), dtype=np.bool_)
    offsets = PopularityOffsets(log.schema.tasks[:1])
    start = 0
    for example in (example for split in TEST for example in prepared.examples[split]):
        rows = slice(start, start + len(example.keys))
        start = rows.stop
        after_N[rows] += offsets.offsets(example.keys, example.now_ms)[:, 0]
        young_N[rows] = [born_ms.get(key, example.now_ms) > example.now_ms - DAY_MS for key in example.keys.tolist()]
        offsets.update(
            example.keys,
            example.labels[:, :1],
            sigmoid(before_N[rows])[:, None].astype(np.float32),
            np.full(len(example.keys), example.now_ms),
        )
    labels = joined({split: prepared.labels(split)[:, 0] for split in TEST})
    members = joined({split: prepared.user_keys[split] for split in TEST})
    changes = [
        bootstrap(_change(statistic, before_N[part], after_N[part], labels[part]), members[part])
        for part in (np.ones(len(labels), dtype=np.bool_), young_N)
        for statistic in (auc_statistic, log_loss_of_logits)
        if part.any()
    ]
    nothing = [Interval(float("nan"), float("nan"), float("nan"))] * (4 - len(changes))
    return Offsets(*changes, *nothing, int(young_N.sum()))


def log_loss_of_logits(logits: NDArray[np.float64], labels: NDArray[np.bool_]) -> Statistic:
    return log_loss_statistic(sigmoid(logits), labels)


def _change(statistic, before, after, labels) -> Statistic:  # type: ignore[no-untyped-def]
    old, new = statistic(before, labels), statistic(after, labels)
    return lambda weights: float(new(weights) - old(weights))

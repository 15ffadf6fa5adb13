"""Replay metrics on a log that was shown evenly: matched first impressions beside inverse propensities.

`python -m tests.bench.open_bandit [--json FILE]`: the Open Bandit sample (ZOZO, CC BY 4.0), 10,000 impressions per
policy and campaign, each an item at one of three places. Two policies are judged from the even log: the Thompson policy
of the other log, whose truth is known, and the item that was clicked most often at the place there, put there always.
"""

# N = rows of the even log

from __future__ import annotations

import argparse
import csv
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.evaluate import Interval, bootstrap_mean
from models.off_policy import ips, matched_first, snips, weigh
from services.datasets.downloads import PACKAGED_DATA, fetch_wheel
from tests.bench.record import Record

CAMPAIGNS = ("all", "men", "women")
COLUMNS = ("item_id", "position", "click", "propensity_score")
SMOOTHING = 20.0
"""Impressions at the log's own rate that are added to every item's, before the best is taken."""

Rows = Mapping[str, NDArray[np.float64]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    options = parser.parse_args()
    record = Record("open bandit")
    for campaign in CAMPAIGNS:
        log, other = (read(policy, campaign) for policy in ("random", "bts"))
        add(record, f"{campaign}: even policy, its own log", bootstrap_mean(log["click"]))
        add(record, f"{campaign}: Thompson, its own log", bootstrap_mean(other["click"]))
        judge(record, f"{campaign}: Thompson", log, chances(log, other), drawn_first(log, other))
        best = best_first(log, other)
        judge(record, f"{campaign}: most clicked at the place", log, (log["item_id"] == best).astype(float), best)
    record.write(options.json)
    print(record.table())
    return 0


def read(policy: str, campaign: str) -> Rows:
    data = PACKAGED_DATA["open-bandit"]
    with (
        zipfile.ZipFile(fetch_wheel(data)) as wheel,
        wheel.open(data.members[f"{policy}/{campaign}"]) as file,
    ):
        rows = list(csv.DictReader(io.TextIOWrapper(file)))
    return {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}


def chances(log: Rows, other: Rows) -> NDArray[np.float64]:
    """Return f64[N]: the other policy's chance of each row's item, how often it showed it at the place: it looks at no
    context."""
    places = {place: other["item_id"][other["position"] == place] for place in np.unique(other["position"])}
    return np.array([np.mean(places[p] == i) for i, p in zip(log["item_id"], log["position"], strict=True)])


def drawn_first(log: Rows, other: Rows, seed: int = 0) -> NDArray[np.float64]:
    """Return f64[N]: one draw of the other policy for each row's place."""
    random = np.random.default_rng(seed)
    places = {place: other["item_id"][other["position"] == place] for place in np.unique(other["position"])}
    return np.array([random.choice(places[place]) for place in log["position"]])


def best_first(log: Rows, other: Rows) -> NDArray[np.float64]:
    """Return f64[N]: for each row's place the item of the highest smoothed rate of clicks in the other log."""
    rate, best = float(other["click"].mean()), {}
    for place in np.unique(other["position"]):
        here = other["position"] == place
        items, inverse, shown = np.unique(other["item_id"][here], return_inverse=True, return_counts=True)
        clicks = np.bincount(inverse, weights=other["click"][here])
        best[place] = items[np.argmax((clicks + SMOOTHING * rate) / (shown + SMOOTHING))]
    return np.array([best[place] for place in log["position"]])


def judge(record: Record, where: str, log: Rows, targets: NDArray[np.float64], first: NDArray[np.float64]) -> None:
    """Add the three estimates of one policy."""
    weights = weigh(targets, log["propensity_score"])
    matched = matched_first(
        log["click"], log["item_id"].astype(np.int64), first.astype(np.int64), log["propensity_score"]
    )
    add(record, f"{where}, matched first impressions", matched.rate)
    record.add(f"{where}, rows that match", matched.num_matched, "rows", f"{matched.num_rewards:.0f} clicks")
    add(record, f"{where}, IPS", ips(log["click"], weights.values_N))
    add(record, f"{where}, self-normalised", snips(log["click"], weights.values_N))
    record.add(f"{where}, effective rows", weights.effective_size, "rows")


def add(record: Record, quantity: str, interval: Interval) -> None:
    note = f"95 % interval {interval.low:.4f} to {interval.high:.4f}"
    record.add(quantity, interval.mean, "clicks per impression", note)


if __name__ == "__main__":
    sys.exit(main())

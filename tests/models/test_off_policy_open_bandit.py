"""Off-policy estimates on a real log: evenly shown items of the Open Bandit sample estimate its Thompson policy."""

from __future__ import annotations

import csv
import io
import zipfile

import numpy as np
import pytest

from models.off_policy import ips, snips, weigh
from services.datasets.downloads import PACKAGED_DATA, fetch_wheel

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("campaign", ["all", "men", "women"])
def test_the_other_policy_is_within_the_interval(campaign: str) -> None:
    data = PACKAGED_DATA["open-bandit"]
    columns = {}
    with zipfile.ZipFile(fetch_wheel(data)) as wheel:
        for policy in ("random", "bts"):
            with wheel.open(data.members[f"{policy}/{campaign}"]) as file:
                rows = list(csv.DictReader(io.TextIOWrapper(file)))
            names = ("item_id", "position", "click", "propensity_score")
            columns[policy] = {name: np.array([float(row[name]) for row in rows]) for name in names}
    log, other = columns["random"], columns["bts"]
    # The other policy looks at no context: its chance of an item at a place is how often it showed it there.
    places = {place: other["item_id"][other["position"] == place] for place in np.unique(other["position"])}
    targets = np.array([np.mean(places[p] == i) for i, p in zip(log["item_id"], log["position"], strict=True)])
    weights = weigh(targets, log["propensity_score"])
    assert weights.mean == pytest.approx(1.0, abs=0.1) and weights.effective_size > 1000
    truth = other["click"].mean()
    for estimate in (ips, snips):
        found = estimate(log["click"], weights.values_N)
        assert found.low < truth < found.high

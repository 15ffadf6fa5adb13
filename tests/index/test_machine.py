import json

import numpy as np
import pytest

from index import machine
from index.config import IndexConfig
from index.live import LiveIndex
from index.machine import describe_machine, find_costs, keep_costs
from index.planner import Costs

DIM = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A snapshot of an index that is large enough to be measured."""
    folder = tmp_path_factory.mktemp("measured")
    index = LiveIndex(IndexConfig(dim=DIM))
    index.upsert(np.arange(20_000), np.random.default_rng(0).standard_normal((20_000, DIM)), [{}] * 20_000)
    index.snapshot(folder, {})
    opened, _ = LiveIndex.open_newest(folder)
    assert opened.costs_from == "default" and opened.costs == Costs()
    index.warm_up()
    assert index.costs_from == "measured" and index.costs != Costs()
    index.snapshot(folder, {})
    return folder


def read_costs(folder):
    newest = max(folder.iterdir())
    return json.loads((newest / "manifest.json").read_bytes())["manifest"]["costs"]


def test_a_snapshot_brings_the_costs_to_the_machine_that_measured_them(folder):
    opened, _ = LiveIndex.open_newest(folder)
    assert opened.costs_from == "snapshot"
    brought = opened.costs
    assert brought == Costs(**read_costs(folder)["nanoseconds"]) != Costs()
    opened.warm_up()
    assert opened.costs is brought and opened.costs_from == "snapshot"
    assert opened.search(np.ones(DIM), 5).exact


@pytest.mark.parametrize("changed", ["processor", "kernels", "threads"])
def test_another_machine_measures_anew(folder, monkeypatch, changed):
    if changed == "processor":
        monkeypatch.setattr(machine, "_read_processor", lambda: ("another", "0"))
    elif changed == "kernels":
        monkeypatch.setattr(machine, "_hash_kernels", lambda: "0")
    opened, _ = LiveIndex.open_newest(folder, num_threads=1 if changed == "threads" else None)
    assert opened.costs_from == "default" and opened.costs == Costs()
    opened.warm_up()
    assert opened.costs_from == "measured"


def test_a_measurement_goes_from_snapshot_to_snapshot(folder, tmp_path):
    opened, _ = LiveIndex.open_newest(folder)
    opened.snapshot(tmp_path, {})
    assert read_costs(tmp_path) == read_costs(folder)


def test_an_index_too_small_to_measure_keeps_nothing(tmp_path):
    index = LiveIndex(IndexConfig(dim=DIM))
    index.warm_up()
    index.snapshot(tmp_path, {})
    assert read_costs(tmp_path) is None


def test_only_costs_of_this_planner_are_taken():
    here = describe_machine(DIM, "cpu", None)
    kept = json.loads(json.dumps(keep_costs(Costs(stream=3.0), here)))
    assert find_costs(kept, here) == Costs(stream=3.0)
    values = kept["nanoseconds"]
    for wrong in ({}, values | {"more": 1.0}, values | {"stream": -1.0}, values | {"stream": "3"}):
        assert find_costs(kept | {"nanoseconds": wrong}, here) is None
    assert find_costs(None, here) is None and find_costs("costs", here) is None
    assert find_costs(kept, describe_machine(DIM + 1, "cpu", None)) is None

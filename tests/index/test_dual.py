"""A change of embedding version: both answer, the switch is one moment, and no query meets the other's vectors."""

import threading

import numpy as np
import pytest

from index.dual import DualIndex
from index.live import IndexConfig, LiveIndex


def make(dim, num_items, value):
    index = LiveIndex(IndexConfig(dim=dim))
    index.upsert(np.arange(num_items), np.full((num_items, dim), value), [{}] * num_items)
    return index


def test_a_change_of_version():
    dual = DualIndex("a", make(2, 5, 1.0))
    with pytest.raises(ValueError, match="only one"):
        dual.switch()
    with pytest.raises(ValueError, match="serves already"):
        dual.begin("a", make(2, 1, 1.0))
    dual.begin("b", make(3, 4, 2.0))
    assert dual.version == "a" and dual.versions == ("a", "b")
    with pytest.raises(ValueError, match="retire one first"):
        dual.begin("c", make(3, 4, 2.0))
    assert dual.search(np.ones(3), 9, version="b").num_matched == 4
    assert dual.switch() == "b" and dual.serving is dual.get("b")
    assert dual.search(np.ones(2), 9, version="a").num_matched == 5
    assert dual.retire() == "a" and dual.retire() is None
    with pytest.raises(ValueError, match=r"'a': the index has \['b'\]"):
        dual.search(np.ones(2), 9, version="a")


def test_queries_beside_switches_keep_their_version():
    dual = DualIndex("v1", make(1, 3, 1.0))
    dual.begin("v2", make(1, 3, 2.0))
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            version = dual.version
            score = dual.search([1.0], 1, version=version).scores[0, 0]
            if score != float(version[1]):
                wrong.append((version, score))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        dual.switch()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong

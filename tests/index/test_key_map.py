"""The key map against a dict, under random writes."""

import numpy as np
import pytest

from index.key_map import KeyMap


@pytest.mark.parametrize("spread", [40, 3000, 2**62])
@pytest.mark.parametrize("seed", range(3))
def test_it_answers_as_a_dict_does(seed, spread):
    rng = np.random.default_rng(seed)
    key_N = np.zeros(1 << 16, np.int64)
    rows_of, oracle, next_row = KeyMap(), {}, 0
    for _ in range(80):
        keys = np.unique(rng.integers(-spread, spread, rng.integers(1, 300)))
        rng.shuffle(keys)
        if rng.random() < 0.4:
            gone = np.array([key for key in keys.tolist() if key in oracle], np.int64)
            rows_of.remove(gone, key_N)
            for key in gone.tolist():
                del oracle[key]
        else:
            rows = np.arange(next_row, next_row + keys.size)
            next_row += keys.size
            key_N[rows] = keys
            rows_of.put(keys, rows, key_N)
            oracle |= dict(zip(keys.tolist(), rows.tolist(), strict=True))
        asked = np.concatenate([rng.integers(-spread, spread, 200), np.fromiter(oracle, np.int64, len(oracle))])
        assert rows_of.find(asked, key_N).tolist() == [oracle.get(key, -1) for key in asked.tolist()]
        assert rows_of.num_keys == len(oracle)


def test_a_whole_column_at_once_and_extreme_keys():
    key_N = np.array([0, -(2**63), 2**63 - 1, 7, -2], np.int64)
    rows_of = KeyMap(key_N)
    assert rows_of.find(np.append(key_N, 8), key_N).tolist() == [0, 1, 2, 3, 4, -1]
    assert KeyMap().find(np.array([3], np.int64), key_N).tolist() == [-1]


def test_the_table_stays_small_under_replacement():
    key_N = np.arange(4096, dtype=np.int64)
    rows_of = KeyMap(key_N[:500].copy())
    for start in range(0, 4000, 500):
        key_N[start : start + 500] = np.arange(500) + start
        rows_of.put(key_N[start : start + 500], np.arange(start, start + 500), key_N)
        rows_of.remove(key_N[start : start + 500], key_N)
    assert rows_of.num_keys == 0 and rows_of._row_T.size <= 4096

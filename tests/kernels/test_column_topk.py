import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.column_topk import column_topk
from tests.kernels.test_filtered_topk import pack


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_backend_equals_sorting(data):
    values = data.draw(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e300, 5e-324, 2.5]), min_size=1, max_size=150))
    keys = np.array(data.draw(st.permutations(range(len(values)))), np.int64)
    flags = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    k = data.draw(st.integers(1, 20))
    rows = [row for row in range(len(values)) if flags[row]]
    expected = sorted(rows, key=lambda row: (-values[row], keys[row]))[:k]
    for backend in ("cpu", "serial", "reference"):
        best = column_topk(np.array(values), keys, pack(flags), k, backend=backend)
        assert best.row_K.tolist() == expected
        assert best.score_K.tolist() == [values[row] for row in expected]


@pytest.mark.parametrize(
    ("values", "words", "k", "message"),
    [(np.ones(3, np.float32), 1, 1, "float32"), (np.ones(3), 2, 1, "mask"), (np.ones(3), 1, 0, "k = 0")],
)
def test_wrong_arguments_are_named(values, words, k, message):
    with pytest.raises(ValueError, match=message):
        column_topk(values, np.arange(3), np.zeros(words, np.uint64), k)

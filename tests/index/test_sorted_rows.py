"""The order of a column against plain Python, under random writes, with sorting beside and at once."""

from threading import Thread

import numpy as np
import pytest

import index.code_column as code_column
import index.sorted_rows as sorted_rows
from index.attributes import Attribute, AttributeSchema
from index.bits import list_bits
from index.columns import Columns
from index.filter import AllOf, AnyOf, NoneOf, Range

SCHEMA = AttributeSchema(
    (Attribute("name", "keyword"), Attribute("tags", "keyword_list"), Attribute("year", "int"), Attribute("x", "float"))
)


def random_item(rng):
    item = {
        "name": f"n{int(rng.integers(40) ** 2)}",
        "tags": tuple({f"t{int(rng.integers(12) ** 2)}" for _ in range(rng.integers(1, 4))}),
        "year": int(rng.integers(0, 60)),
        "x": float(rng.integers(-5, 400)),
    }
    return {name: value for name, value in item.items() if rng.random() < 0.9}


def random_filters(rng):
    low = int(rng.integers(-3, 60))
    return [
        AnyOf("name", tuple(f"n{int(value) ** 2}" for value in rng.integers(0, 45, rng.integers(1, 12)))),
        AnyOf("tags", (f"t{int(rng.integers(13)) ** 2}",)),
        AllOf("tags", ("t1", f"t{int(rng.integers(12)) ** 2}")),
        NoneOf("tags", ("t121", "t4")),
        AnyOf("year", tuple(int(value) for value in rng.integers(0, 70, rng.integers(1, 12)))),
        Range(field="year", gte=low, lt=low + 2),
        Range(field="year", gt=low),
        Range(field="x", gte=float(low), lte=float(low)),
        Range(field="x", gt=395.0, lt=float(low)),
        Range(field="x", lte=-1.0),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_every_clause_equals_its_definition(monkeypatch, seed):
    monkeypatch.setattr(sorted_rows, "MIN_RECENT_ROWS", 16 if seed % 2 else 100)
    monkeypatch.setattr(sorted_rows, "FENCE_ROWS", 4)
    monkeypatch.setattr(code_column, "MIN_PLANE_ROWS", [40, 10**9][seed // 2 % 2])
    rng = np.random.default_rng(seed)
    columns = Columns(SCHEMA, 512)
    kept = {}
    for step in range(60):
        if step == 30:
            old, before = columns, dict(kept)
            columns = columns.grow(1024)
        rows = rng.choice(512 if step < 30 else 1024, rng.integers(1, 60), replace=False)
        items = [random_item(rng) for _ in rows]
        sorting = Thread(target=columns.sort)
        if step % 4:
            sorting.start()
        columns.write(rows, [[item.get(each.name) for each in SCHEMA.attributes] for item in items])
        kept |= dict(zip(rows.tolist(), items, strict=True))
        if step % 10 == 5 and len(kept) > 20:
            source = rng.choice(list(kept), 9, replace=False)
            to = rng.permutation(np.setdiff1d(np.arange(512), source))[:9]
            columns.move(source, to)
            kept |= {int(b): kept[int(a)] for a, b in zip(source, to, strict=True)}
        if step % 8 > 4:
            sorting.join()
        for tree in random_filters(rng):
            found = list_bits(columns.evaluate(tree, 8 if step < 30 else 16)).tolist()
            everything = range(512 if step < 30 else 1024)
            assert found == [row for row in everything if tree.matches(kept.get(row, {}))], tree
        if step % 4:
            sorting.join()
    untouched = [row for row in range(512) if kept.get(row, {}) is before.get(row, {})]
    for tree in random_filters(rng):  # a reader that still holds the smaller columns
        found = set(list_bits(old.evaluate(tree, 8)).tolist())
        for row in untouched:
            assert (row in found) == tree.matches(before.get(row, {})), tree

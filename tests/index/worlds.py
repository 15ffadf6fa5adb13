"""Generated catalogues and filters, and the slow answers they are compared with."""

import math

import numpy as np
from hypothesis import strategies as st

from index.attributes import Attribute, AttributeSchema
from index.filter import AllOf, And, AnyOf, Exists, NoneOf, Not, Or, Range

SCHEMA = AttributeSchema(
    (
        Attribute("genre", "keyword_list"),
        Attribute("studio", "keyword"),
        Attribute("year", "int"),
        Attribute("score", "float"),
        Attribute("adult", "bool"),
        Attribute("released", "timestamp"),
    )
)

TEXTS = ["", "a", "b", "c", "Élan", 'quo"te', "and", "[", "日本"]
INTS = [-(2**63), -1, 0, 1, 1990, 2**53, 2**53 + 1, 2**63 - 1]
FLOATS = [-1.5, -0.0, 0.0, 0.1, 1.0, 2.5, 1e300, 5e-324]
VALUES = {"genre": TEXTS, "studio": TEXTS, "year": INTS, "score": FLOATS, "adult": [True, False], "released": INTS}
RANGED = ("year", "score", "released")

attributes = st.fixed_dictionaries(
    {},
    optional={
        "genre": st.lists(st.sampled_from(TEXTS), max_size=4),
        **{name: st.sampled_from(values) for name, values in VALUES.items() if name != "genre"},
    },
)


@st.composite
def _set_clause(draw):
    name = draw(st.sampled_from(list(VALUES)))
    values = draw(st.lists(st.sampled_from(VALUES[name]), min_size=1, max_size=12))
    return draw(st.sampled_from([AnyOf, AllOf, NoneOf]))(name, tuple(dict.fromkeys(values)))


@st.composite
def _range_clause(draw):
    name = draw(st.sampled_from(RANGED))
    value = st.sampled_from(VALUES[name])
    lower = draw(st.sampled_from(["gte", "gt", None]))
    upper = draw(st.sampled_from(["lte", "lt"] if lower is None else ["lte", "lt", None]))
    return Range(field=name, **{operator: draw(value) for operator in (lower, upper) if operator})


_exists_clause = st.builds(Exists, st.sampled_from(list(VALUES)), st.booleans())
filters = st.recursive(
    st.one_of(_set_clause(), _range_clause(), _exists_clause),
    lambda children: st.one_of(
        st.builds(Not, children),
        st.builds(And, st.lists(children, min_size=2, max_size=3).map(tuple)),
        st.builds(Or, st.lists(children, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


def exact_score(query, vector):
    return math.fsum(np.asarray(query, np.float64) * np.asarray(vector, np.float64))


def best_items(query, items, k, tree=None, exclude=()):
    """items: key -> (vector, attributes). The answer by definition: [(key, float32 score)]."""
    scored = [
        (-exact_score(query, vector), key)
        for key, (vector, values) in items.items()
        if key not in exclude and (tree is None or tree.matches(values))
    ]
    with np.errstate(over="ignore"):
        return [(key, float(np.float32(-score))) for score, key in sorted(scored)[:k]]


def listed(hits, query=0):
    """The hits of one query as [(key, score)], after checking the tail."""
    keys, scores = hits.keys[query], hits.scores[query]
    count = int((keys != -1).sum())
    assert (keys[count:] == -1).all() and (scores[count:] == -np.inf).all()
    assert (keys[:count] != -1).all()
    return list(zip(keys[:count].tolist(), scores[:count].tolist(), strict=True))

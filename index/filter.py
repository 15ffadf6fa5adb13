"""Filters: a boolean tree over typed attributes, in two spellings (JSON and text) of one grammar.

`index/FORMAT.md` holds the grammar and the meaning of missing values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from index.attributes import AttributeSchema
from index.filter_json import read_json
from index.filter_text import read_text
from index.tree import (
    MAX_DEPTH,
    MAX_TEXT_CHARS,
    AllOf,
    And,
    AnyOf,
    Exists,
    Filter,
    FilterError,
    NoneOf,
    Not,
    Or,
    Range,
    fields_of,
)

__all__ = [
    "AllOf",
    "And",
    "AnyOf",
    "Exists",
    "Filter",
    "FilterError",
    "NoneOf",
    "Not",
    "Or",
    "Range",
    "fields_of",
    "parse_filter",
]


def parse_filter(source: str | Mapping[str, object] | None, schema: AttributeSchema) -> Filter | None:
    """The tree that `source` spells, checked against the schema; None for None (everything matches).

    A string is the text spelling, or JSON where it begins with "{". Both spellings of a filter give equal trees.

    Raises FilterError: unknown attribute (the nearest one is named), a value of the wrong type, an operator
    that the type does not have, or a filter past MAX_DEPTH, MAX_CLAUSES, MAX_VALUES or MAX_TEXT_CHARS.
    """
    if source is None:
        return None
    if isinstance(source, str):
        if len(source) > MAX_TEXT_CHARS:
            raise FilterError("char 0", f"the filter has {len(source)} characters, at most {MAX_TEXT_CHARS} are read")
        if source.lstrip().startswith("{"):
            return read_json(_load_json(source), schema)
        return read_text(source, schema)
    return read_json(source, schema)


def _load_json(source: str) -> object:
    def refuse_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"a name given twice in one object: {max(names, key=names.count)!r}")
        return dict(pairs)

    try:
        return json.loads(source, object_pairs_hook=refuse_twice)
    except json.JSONDecodeError as error:
        raise FilterError(f"char {error.pos}", f"not JSON: {error.msg}") from error
    except ValueError as error:
        raise FilterError("", f"not JSON: {error}") from error
    except RecursionError as error:
        raise FilterError("", f"nested deeper than {MAX_DEPTH}") from error

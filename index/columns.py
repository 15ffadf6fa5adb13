"""Attribute values by row: the columns of a schema, and the evaluation of filters over them.

A column is written by one writer, only at rows that no reader can see, and read by any number of readers. What
its order suggests is compared with the column itself, so every filter is exact. Growing makes a larger copy
and leaves the old column as it was, for the readers that still hold it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from index.attributes import AttributeSchema, Stored
from index.bits import Rows, Words
from index.code_column import CodeColumn
from index.number_column import NumberColumn
from index.tree import AllOf, And, AnyOf, Exists, Filter, NoneOf, Not, Or, Range

Column = NumberColumn | CodeColumn


class Columns:
    """The columns of a schema, of one capacity."""

    def __init__(self, schema: AttributeSchema, capacity: int) -> None:
        self.schema = schema
        self.by_name: dict[str, Column] = {
            attribute.name: NumberColumn(attribute, capacity)
            if attribute.type in ("int", "float", "timestamp")
            else CodeColumn(attribute, capacity)
            for attribute in schema.attributes
        }

    def grow(self, capacity: int) -> Columns:
        """A larger copy; this one stays as it is."""
        grown = self.begin_copy(capacity)
        size = min((column.num_rows for column in self.by_name.values()), default=0)
        grown.copy_rows(self, np.arange(size))
        grown.finish_copy(self)
        return grown

    def begin_copy(self, capacity: int) -> Columns:
        """Columns that will hold the same rows after `copy_rows` and `finish_copy`."""
        copied = copy.copy(self)
        copied.by_name = {name: column.begin_copy(capacity) for name, column in self.by_name.items()}
        return copied

    def copy_rows(self, source: Columns, rows: Rows) -> None:
        """Take over rows, beside the source's writer. Rows that were written meanwhile have to be copied again."""
        words = np.unique(rows >> 6)
        for column, other in zip(self.by_name.values(), source.by_name.values(), strict=True):
            column.copy_rows(other, rows, words)  # type: ignore[arg-type]

    def finish_copy(self, source: Columns) -> None:
        """Take over what is not by row; the source's writer must stand still."""
        for column, other in zip(self.by_name.values(), source.by_name.values(), strict=True):
            column.finish_copy(other)  # type: ignore[arg-type]

    @property
    def wants_copy(self) -> bool:
        """Whether a copy would hold less than these columns do, and soon will have to be made."""
        return any(column.wants_copy for column in self.by_name.values())

    @property
    def wants_sorting(self) -> bool:
        return any(column.order.is_due for column in self.by_name.values())

    def sort(self) -> None:
        """Sort the columns whose order has many recent rows; one thread at a time, beside the writer."""
        for column in self.by_name.values():
            column.sort()

    def write(self, rows: Rows, items: Sequence[Sequence[Stored]]) -> None:
        """Write each row's checked values, in schema order; what the rows held before is gone."""
        for position, column in enumerate(self.by_name.values()):
            column.write(rows, [values[position] for values in items])

    def move(self, rows: Rows, to: Rows) -> None:
        """Write the values of `rows` at other rows, which no reader can see."""
        for column in self.by_name.values():
            column.move(rows, to)

    def read(self, row: int) -> dict[str, object]:
        """The row's attributes as the caller gave them; missing ones are absent."""
        found: dict[str, object] = {}
        for name, column in self.by_name.items():
            value = column.read(row)
            if value is not None:
                found[name] = list(value) if isinstance(value, tuple) else value
        return found

    def evaluate(self, tree: Filter, num_words: int) -> Words:
        """The plane of the rows that match. Rows never written count as rows without attributes.

        Raises ValueError for an attribute that the schema does not have.
        """
        if isinstance(tree, (And, Or)):
            words = self.evaluate(tree.children[0], num_words)
            for child in tree.children[1:]:
                other = self.evaluate(child, num_words)
                words = words & other if isinstance(tree, And) else words | other
            return words
        if isinstance(tree, Not):
            return ~self.evaluate(tree.child, num_words)
        column = self.by_name.get(tree.field)
        if column is None:
            raise ValueError(f"filter on {tree.field!r}: the index has {list(self.by_name)}")
        if isinstance(tree, AnyOf):
            return column.any_of(tree.values, num_words)
        if isinstance(tree, AllOf):
            return column.all_of(tree.values, num_words)
        if isinstance(tree, NoneOf):
            return ~column.any_of(tree.values, num_words)
        if isinstance(tree, Range):
            return column.between(tree.bounds(), num_words)
        assert isinstance(tree, Exists)
        present = column.exists(num_words)
        return present if tree.present else ~present

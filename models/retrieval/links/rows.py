"""A link as a row of a file that people read and edit: JSON Lines, one link a line.

    {"pairs": [["title", "nurse", "title", "midwife"], ["seniority", "lead", "seniority", "lead"]], "weight": 2.1, ...}

A pair is: member attribute, its value, item attribute, its value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import xxhash

Scalar = str | int | bool
Origin = Literal["mined", "edited"]
MAX_PAIRS = 8
_REQUIRED = ("pairs", "weight")
_OPTIONAL = ("hires", "refusals", "reach", "enabled", "origin", "note")


class MetaLink(NamedTuple):
    """A value of a member's attribute beside a value of an item's."""

    member: str
    value: Scalar
    item: str
    item_value: Scalar

    def __str__(self) -> str:
        return f"{self.member}={self.value} -> {self.item}={self.item_value}"


class LinkFileError(ValueError):
    """Rows of links that cannot be used; the message names file, line, value and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    pairs: tuple[MetaLink, ...]
    """Sorted, none twice; all must hold."""
    weight: float
    """What the link adds to the log-odds of a hire."""
    hires: int = 0
    """Confirmed hires among the pairs that it held of, when it was mined."""
    refusals: int = 0
    """Others among them."""
    reach: int = 0
    """Items whose side of it held, when it was mined."""
    enabled: bool = True
    origin: Origin = "mined"
    note: str = ""

    def __post_init__(self) -> None:
        ordered = tuple(pair for _, pair in sorted({_order(pair): pair for pair in self.pairs}.items()))
        if not 1 <= len(ordered) <= MAX_PAIRS:
            raise ValueError(f"a link has {len(ordered)} pairs; expected 1 to {MAX_PAIRS}")
        if not math.isfinite(self.weight):
            raise ValueError(f"link {self.text!r} has weight {self.weight!r}; expected a finite number")
        object.__setattr__(self, "pairs", ordered)

    @property
    def id(self) -> str:
        """12 hex digits that depend on the pairs alone."""
        return xxhash.xxh3_64_hexdigest(json.dumps(self.pairs, ensure_ascii=False).encode("utf-8", "surrogatepass"))[
            :12
        ]

    @property
    def text(self) -> str:
        return " & ".join(str(pair) for pair in self.pairs)

    @property
    def member_side(self) -> tuple[tuple[str, Scalar], ...]:
        """What must hold of the member: (attribute, value), each once, sorted."""
        return _side((pair.member, pair.value) for pair in self.pairs)

    @property
    def item_side(self) -> tuple[tuple[str, Scalar], ...]:
        """What must hold of the item."""
        return _side((pair.item, pair.item_value) for pair in self.pairs)

    def edited(self, *, weight: float | None = None, enabled: bool | None = None) -> Link:
        """Return the link changed by a person's hand."""
        changes: dict[str, object] = {} if weight is None else {"weight": weight}
        if enabled is not None:
            changes["enabled"] = enabled
        return replace(self, origin="edited", **changes)  # type: ignore[arg-type]


def write_links(path: Path, links: Iterable[Link]) -> None:
    """Write one link a line, the heaviest first."""
    ordered = sorted(links, key=lambda link: (-link.weight, link.text))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for link in ordered:
            document: dict[str, object] = {"id": link.id, "pairs": link.pairs, "weight": round(link.weight, 6)}
            document |= {name: getattr(link, name) for name in _OPTIONAL}
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


def read_links(path: Path) -> list[Link]:
    """Read what `write_links` wrote, or a person. `id` is not read: it follows from the pairs; empty lines are passed.

    Raises LinkFileError for the first line that is no link, or a link that stands twice.
    """
    if not path.is_file():
        raise LinkFileError(f"{path} is no file; expected links, one JSON object a line")
    links: list[Link] = []
    lines: dict[str, int] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LinkFileError(f"{path} is not UTF-8: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            link = parse_link(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise LinkFileError(f"{path}, line {number}: {error}") from None
        if link.id in lines:
            raise LinkFileError(f"{path}, line {number}: link {link.text!r} stands in line {lines[link.id]} already")
        lines[link.id] = number
        links.append(link)
    return links


def parse_link(document: object) -> Link:
    """Return the link of a JSON object. Raises ValueError naming what is wrong."""
    if not isinstance(document, dict):
        raise ValueError(f"{document!r:.80}; expected an object with {list(_REQUIRED)}")
    missing = [name for name in _REQUIRED if name not in document]
    unknown = sorted(set(document) - {"id", *_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        what = f"{missing[0]!r} is missing" if missing else f"unknown key {unknown[0]!r}"
        raise ValueError(f"{what}; expected {list(_REQUIRED)} and any of {list(_OPTIONAL)}")
    pairs = document["pairs"]
    if not isinstance(pairs, list):
        raise ValueError(f"pairs is {pairs!r:.80}; expected a list of [member attribute, value, item attribute, value]")
    for name, kinds in (("weight", (int, float)), ("hires", (int,)), ("refusals", (int,)), ("reach", (int,))):
        value = document.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{name} is {value!r:.80}; expected a number")
    if not isinstance(document.get("enabled", True), bool):
        raise ValueError(f"enabled is {document['enabled']!r:.80}; expected true or false")
    if document.get("origin", "mined") not in get_args(Origin):
        raise ValueError(f"origin is {document['origin']!r:.80}; expected one of {list(get_args(Origin))}")
    if not isinstance(document.get("note", ""), str):
        raise ValueError(f"note is {document['note']!r:.80}; expected a text")
    fields = {name: document[name] for name in _OPTIONAL if name in document}
    return Link(pairs=tuple(_meta_link(pair) for pair in pairs), weight=float(document["weight"]), **fields)


def compare_links(old: Sequence[Link], new: Sequence[Link]) -> tuple[list[Link], list[Link], list[Link]]:
    """Return what `new` adds, what it removes, and what it changes of a link that stays (as it is now)."""
    before, after = ({link.id: link for link in links} for links in (old, new))
    added = [link for name, link in after.items() if name not in before]
    removed = [link for name, link in before.items() if name not in after]
    changed = [link for name, link in after.items() if name in before and _differs(link, before[name])]
    return added, removed, changed


def _differs(one: Link, other: Link) -> bool:
    same = (one.enabled, one.note) == (other.enabled, other.note)
    return not same or not math.isclose(one.weight, other.weight, abs_tol=1e-6)


def _meta_link(pair: object) -> MetaLink:
    if isinstance(pair, list) and len(pair) == 4:
        member, value, item, item_value = pair
        names = isinstance(member, str) and isinstance(item, str) and member and item
        if names and isinstance(value, Scalar) and isinstance(item_value, Scalar):
            return MetaLink(member, value, item, item_value)
    raise ValueError(f"pair {pair!r:.80}; expected [member attribute, value, item attribute, value]")


def _order(pair: MetaLink) -> tuple[str, ...]:
    # By repr, for True == 1 in Python and "1" sorts beside neither.
    return (pair.member, repr(pair.value), pair.item, repr(pair.item_value))


def _side(conditions: Iterable[tuple[str, Scalar]]) -> tuple[tuple[str, Scalar], ...]:
    return tuple(
        condition for _, condition in sorted({(name, repr(value)): (name, value) for name, value in conditions}.items())
    )

"""The `[links]` section of a dataset's description: what learned links are mined from (docs/links.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.datasets.attribute_values import AttributeType
from services.datasets.descriptions import Problem, listed, nearest

LINKABLE: tuple[AttributeType, ...] = ("keyword", "keyword_list", "int", "bool")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LinkTemplateSpec(_Section):
    """Which attribute of a user may be linked with which of an item."""

    member: str
    item: str
    same: bool = False
    """Only equal values are linked: for lists of many values."""


class LinksSection(_Section):
    confirmed: str
    """The action that links are mined from: a hire, a purchase."""
    refused: str
    """The action that counts against a link where `confirmed` did not follow it: an application, a click."""
    templates: Annotated[tuple[LinkTemplateSpec, ...], Field(strict=False, min_length=1)]
    max_size: Annotated[int, Field(ge=1, le=4)] = 2
    """Pairs of attribute values that one link may ask for."""
    min_support: Annotated[int, Field(ge=1)] = 3
    """Confirmed pairs that a link must hold of."""
    pending: str = "4d"
    """A refusal as young as that, from the newest event, may yet be confirmed: it is left out."""
    sampled: Annotated[int, Field(ge=0, le=100)] = 0
    """Pairs drawn evenly for each confirmed one, to count against links beside the refused ones."""


def links_problems(
    links: LinksSection,
    user_types: Mapping[str, AttributeType],
    item_types: Mapping[str, AttributeType],
    filterable: Iterable[str],
    actions: Iterable[str],
) -> Iterable[Problem]:
    """What is wrong with the names of the section."""
    known, filterable = list(actions), set(filterable)
    for key in ("confirmed", "refused"):
        name = getattr(links, key)
        if name not in known:
            yield Problem(f"links.{key}", name, f"expected one of {listed(known)}{nearest(name, known)}")
    for place, template in enumerate(links.templates):
        for side, types in (("member", user_types), ("item", item_types)):
            name = getattr(template, side)
            usable = [each for each, kind in types.items() if kind in LINKABLE]
            if name not in usable:
                rule = f"expected one of {listed(usable)}{nearest(name, usable)}"
                yield Problem(f"links.templates.{place}.{side}", name, rule)
        if template.item in item_types and template.item not in filterable:
            yield Problem(f"links.templates.{place}.item", template.item, "expected an attribute with filter = true")

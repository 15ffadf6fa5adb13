"""The words of a jobs world: occupations, each in a family and with skills.

The tiny vocabulary needs no download; `services/datasets/vocabularies.py` reads the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Occupation:
    title: str
    family: str
    """Occupations of one family are near one another: people move between them."""
    skills: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.title or not self.skills:
            raise ValueError(f"occupation {self.title!r} has {len(self.skills)} skills; expected a title and a skill")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    name: str
    licence: str
    """Who made the words, and on what terms; shown wherever the world is."""
    occupations: tuple[Occupation, ...]

    def __post_init__(self) -> None:
        titles = [occupation.title for occupation in self.occupations]
        if not titles or len(set(titles)) < len(titles):
            raise ValueError(f"vocabulary {self.name!r}: {len(titles)} titles, {len(set(titles))} of them different")

    def sample(self, num_occupations: int, random: np.random.Generator) -> Vocabulary:
        """Return at most so many occupations, whole families at a time as far as they fit."""
        if num_occupations >= len(self.occupations):
            return self
        families = list(dict.fromkeys(occupation.family for occupation in self.occupations))
        kept: list[Occupation] = []
        for place in random.permutation(len(families)):
            of = [occupation for occupation in self.occupations if occupation.family == families[place]]
            kept += of[: num_occupations - len(kept)]
        return Vocabulary(self.name, self.licence, tuple(kept))


def nearest_occupations(vocabulary: Vocabulary, num_near: int) -> NDArray[np.int64]:
    """Return int64[num_occupations, num_near]: the others of the family with the most skills in common, -1 for none.

    By the share of skills in common (Jaccard), ties to the earlier occupation.
    """
    skills = [frozenset(occupation.skills) for occupation in vocabulary.occupations]
    families: dict[str, list[int]] = {}
    for place, occupation in enumerate(vocabulary.occupations):
        families.setdefault(occupation.family, []).append(place)
    near = np.full((len(skills), num_near), -1, np.int64)
    for place, occupation in enumerate(vocabulary.occupations):
        others = [other for other in families[occupation.family] if other != place]
        others.sort(key=lambda other, mine=skills[place]: -len(mine & skills[other]) / len(mine | skills[other]))  # type: ignore[misc]
        near[place, : len(others[:num_near])] = others[:num_near]
    return near


def _occupations(family: str, *lines: str) -> tuple[Occupation, ...]:
    parted = (line.split(": ") for line in lines)
    return tuple(Occupation(title, family, tuple(skills.split(", "))) for title, skills in parted)


TINY = Vocabulary(
    "tiny",
    "Written for Shortlist, Apache-2.0.",
    _occupations(
        "health",
        "nurse: give injections, keep patient records, dress wounds, triage",
        "intensive care nurse: give injections, watch ventilators, keep patient records, read monitors",
        "midwife: deliver babies, keep patient records, give injections, counsel parents",
        "pharmacist: dispense medicines, check prescriptions, counsel patients, keep stock",
    )
    + _occupations(
        "software",
        "backend developer: Python, SQL, design interfaces, review code",
        "data engineer: Python, SQL, build pipelines, tune queries",
        "frontend developer: JavaScript, design pages, review code, test browsers",
        "machine learning engineer: Python, train models, build pipelines, read papers",
    )
    + _occupations(
        "kitchen",
        "cook: prepare meals, sharpen knives, keep stock, clean kitchens",
        "pastry cook: bake bread, decorate cakes, keep stock, clean kitchens",
        "head cook: plan menus, lead a kitchen, keep stock, prepare meals",
        "waiter: serve guests, take orders, carry plates, settle bills",
    ),
)

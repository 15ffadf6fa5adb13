"""A small made-up data set in the official MovieLens-100k files: enough for the whole demo to run in seconds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from services.datasets.movielens import GENRES

FIRST_S = 874_724_710
DAY_S = 86_400


def write_ml_100k(path: Path, num_users: int = 300, num_items: int = 120, seed: int = 3) -> Path:
    """Write a zip with u.data, u.item and u.user: members like one of three genres, and rate in one sitting."""
    random = np.random.default_rng(seed)
    genre = random.integers(1, 4, num_items)
    items = []
    for row in range(num_items):
        flags = ["1" if place == genre[row] else "0" for place in range(len(GENRES))]
        year = 1980 + row % 18
        items.append("|".join([str(row + 1), f"Film {row + 1} ({year})", f"01-Jan-{year}", "", "", *flags]))
    users = [f"{row + 1}|{20 + row % 50}|{'MF'[row % 2]}|writer|{10000 + row}" for row in range(num_users)]
    ratings = []
    for user in range(num_users):
        start = FIRST_S + int(random.integers(0, 120 * DAY_S))
        taste = 1 + user % 3
        chosen = random.choice(num_items, size=int(random.integers(12, 30)), replace=False)
        for step, item in enumerate(chosen.tolist()):
            liked = genre[item] == taste
            rating = int(random.integers(4, 6) if liked else random.integers(1, 4))
            ratings.append(f"{user + 1}\t{item + 1}\t{rating}\t{start + 20 * step}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.item", "\n".join(items).encode("latin-1"))
        archive.writestr("ml-100k/u.user", "\n".join(users))
        archive.writestr("ml-100k/u.data", "\n".join(ratings))
    return path

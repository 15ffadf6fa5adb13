"""Settings of the ranker's training chosen for a dataset: fitted on its own replayed requests, judged on later ones.

`python -m tests.bench.ranking_settings movielens|completejourney|baskets [--window earlier|validation|test]
[--seeds N] [--only NAME ...] [--json FILE]`

The window is a tenth of the events: the last but two (`earlier`) or but one (`validation`), which choose, or the last
(`test`). Towers and requests are made as `shortlist train` makes them, from the events before the window alone; the
window's requests are ranked among all that retrieval finds, as in service. `baskets` is the log of The Complete Journey
that tests.bench.ranking has, with its windows of trips: the whole of that data set takes long. Every setting and seed
is given the same requests. Figures: NDCG@10 of the dataset's own value function, and AUC within requests by task, as
means over seeds; differences from the first setting are paired, with 95 % intervals over members.
"""

# R = requests, T = tasks

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.evaluate import Interval, auc, bootstrap_mean, ndcg_at
from models.ranking.calibration import Calibration
from models.ranking.examples import Example, replay_examples
from models.ranking.features import FeatureAssembler
from models.ranking.model import RankingModel, make_network
from models.ranking.training import RankingConfig, calibrate, fit, logits_of
from models.retrieval.training import RetrievalConfig, train_retrieval
from services.candidates import Candidates, Plan
from services.datasets.completejourney import prepare_complete_journey
from services.datasets.dataset import Dataset
from services.datasets.movielens import prepare_movielens
from services.keys import keys_of
from services.ranking.value import ValueFunction, order_of
from tests.bench.ctr.compare import TEST
from tests.bench.ctr.completejourney import Journey
from tests.bench.ctr.log import item_statistics
from tests.bench.ctr.log import prepare as prepare_log
from tests.bench.record import Record

CONFIGS = Path(__file__).parents[2] / "configs"
PREPARE = {"movielens": prepare_movielens, "completejourney": prepare_complete_journey}
BASKETS = "baskets"
WINDOWS = {"earlier": (0.7, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
MAX_JUDGED = 1500
"""Requests of the window that are judged, evenly drawn."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    f"{history}, tables {rate:g}": {"history": history, "table_learning_rate": rate}
    for history in ("pooled", "causal", "transact")
    for rate in (0.02, 0.002)
}
"""What is compared; the first is `RankingConfig()`."""

STARTED = time.perf_counter()


class World(NamedTuple):
    dataset: Dataset
    schema: FeatureSchema
    items: ItemTable
    users: Mapping[int, Mapping[str, object]]
    events: EventTable


class Part(NamedTuple):
    """The requests of one window and those before it that train."""

    training: Sequence[Example]
    held_out: Sequence[Example]
    judged: Sequence[Example]


class Judged(NamedTuple):
    """One number per judged request: nan where a request cannot tell."""

    ndcg: NDArray[np.float64]
    gauc: Mapping[str, NDArray[np.float64]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=[*PREPARE, BASKETS])
    parser.add_argument("--window", choices=sorted(WINDOWS), default="validation")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), help="settings beside the first")
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(2)
    record = Record("ranking settings")
    part, world = (prepare_baskets if options.dataset == BASKETS else partial(prepare, options.dataset))(options.window)
    say(f"{len(part.training)} requests to train on, {len(part.held_out)} calibrate, {len(part.judged)} judged")
    members = np.array([example.user_key for example in part.judged])
    first: Judged | None = None
    for name, changes in SETTINGS.items():
        if first is not None and options.only is not None and name not in options.only:
            continue
        started = time.perf_counter()
        judged = mean_of([judge(world, part, config_of(changes, seed)) for seed in range(options.seeds)])
        seconds = (time.perf_counter() - started) / options.seeds
        first = first or judged
        where = f"{options.dataset}, {options.window}, {name}"
        parts = [report(record, where, "NDCG@10", judged.ndcg, first.ndcg, members)]
        for task, values in judged.gauc.items():
            parts.append(report(record, where, f"gAUC {task}", values, first.gauc[task], members))
        say(f"{name}: {', '.join(parts)}; {seconds:.0f} s a seed")
    record.write(options.json)
    return 0


def config_of(changes: Mapping[str, Any], seed: int) -> RankingConfig:
    base = RankingConfig(seed=seed)
    network = replace(base.network, history=changes["history"])
    return replace(base, network=network, table_learning_rate=changes["table_learning_rate"])


def prepare(name: str, window: str) -> tuple[Part, World]:
    """Make the requests of a window, and of what came before it, as `train_cold` makes them."""
    world = load(name)
    begin, end = (world.events.quantile_ms(share) if share < 1.0 else None for share in WINDOWS[window])
    assert begin is not None
    config = RankingConfig()
    past, known = world.events.between(None, begin), world.events.between(None, end)
    earlier, _ = past.split(past.quantile_ms(1.0 - config.examples.window_share))
    towers = train_retrieval(world.schema, world.items, world.users, earlier, config.retrieval)
    say("towers on the past trained")
    assembler = FeatureAssembler(world.schema, *item_statistics(world.items))
    requests = list(
        replay_examples(
            world.schema, world.items, world.users, past, towers, assembler, config.examples, config.seed,
            progress=lambda done, total, _: say(f"{done} / {total} requests"),
        )
    )  # fmt: skip
    served = train_retrieval(world.schema, world.items, world.users, past, RetrievalConfig())
    say("towers trained")
    # A member held out is given what serving would retrieve; here everyone is.
    everyone = replace(config.examples, held_out_share=np.nextafter(1.0, 0.0), max_requests=MAX_JUDGED)
    judged = list(
        replay_examples(
            world.schema, world.items, world.users, known, served, assembler, everyone, config.seed, since_ms=begin,
            progress=lambda done, total, _: say(f"{done} / {total} requests"),
        )
    )  # fmt: skip
    training = [example for example in requests if not example.held_out]
    return Part(training, [example for example in requests if example.held_out], judged), world


def prepare_baskets(window: str) -> tuple[Part, World]:
    """Take the log's own requests; those of its validation window calibrate when the test windows are judged."""
    if window == "earlier":
        raise SystemExit("the log of baskets has the windows validation and test")
    log = Journey().baskets()
    prepared = prepare_log(log, say)
    held_out = () if window == "validation" else prepared.examples["validation"]
    judged = [
        example
        for split in (("validation",) if window == "validation" else TEST)
        for example in prepared.examples[split]
    ]
    world = World(Dataset.load(CONFIGS / "completejourney.toml"), log.schema, log.items, log.users, log.events)
    return Part(prepared.examples["train"], held_out, judged), world


def load(name: str) -> World:
    dataset = Dataset.load(CONFIGS / f"{name}.toml")
    schema = dataset.feature_schema()
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        files = PREPARE[name](Path(folder))
        items, users, events = (pq.read_table(path) for path in (files.items, files.users, files.events))
    table = ItemTable(schema)
    table.upsert(keys_of(items["item_id"].to_pylist()), _attributes(items, [f.name for f in schema.item]))
    people = _attributes(users, [feature.name for feature in schema.user])
    return World(
        dataset,
        schema,
        table,
        dict(zip(keys_of(users["user_id"].to_pylist()).tolist(), people, strict=True)),
        EventTable.from_columns(
            schema,
            user_keys=keys_of(events["user_id"].to_pylist()),
            item_keys=keys_of(events["item_id"].to_pylist()),
            types=events["type"].to_pylist(),
            values=events["value"].to_numpy(),
            ts_ms=events["ts"].cast("int64").to_numpy(),
        ),
    )


def _attributes(table, names: Sequence[str]) -> list[Mapping[str, object]]:  # type: ignore[no-untyped-def]
    rows = table.select(list(names)).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def judge(world: World, part: Part, config: RankingConfig) -> Judged:
    """Train with one setting and seed, and rank the judged requests."""
    network = make_network(world.schema, config.network, config.seed)
    for buffer, values in zip((network.centers, network.scales), item_statistics(world.items), strict=True):
        buffer.copy_(torch.from_numpy(values))
    fit(world.schema, world.items, network, part.training, config)
    model = RankingModel(world.schema, config.network, network, Calibration.identity(world.schema.tasks))
    model.calibration = calibrate(model, world.items, part.held_out)
    function = ValueFunction.parse(world.dataset.ranking.value, world.schema)
    logits_NT = logits_of(model, world.items, part.judged)
    probabilities_NT = model.calibration.probabilities(logits_NT, world.schema.implied_tasks())
    ends = np.cumsum([len(example.keys) for example in part.judged])[:-1]
    tasks = world.schema.tasks
    positive = tasks.index(world.schema.positive)
    ndcg = np.full(len(part.judged), np.nan)
    gauc = {task: np.full(len(part.judged), np.nan) for task in tasks}
    for row, (example, chances_nT) in enumerate(zip(part.judged, np.split(probabilities_NT, ends), strict=True)):
        candidates = candidates_of(world.schema, example)
        order = order_of(candidates, function(chances_nT, tasks, candidates))
        wanted = example.labels[:, positive]
        ndcg[row] = ndcg_at(wanted[order], int(wanted.sum()), 10)
        for place, task in enumerate(tasks):
            gauc[task][row] = auc(chances_nT[:, place], example.labels[:, place])
    return Judged(ndcg, gauc)


def candidates_of(schema: FeatureSchema, example: Example) -> Candidates:
    """Return an example's candidates for a value function of tasks alone: signals and retrieval scores are not kept."""
    size = len(example.keys)
    return Candidates(
        keys=example.keys,
        scores=np.zeros(size, np.float32),
        sources=np.zeros(size, np.uint32),
        signals=np.full((size, len(schema.signals)), np.nan),
        plan=Plan(matched=size, scanned=0, rescored=0, strategy="given", exact=True),
        versions={},
    )


def mean_of(seeds: Sequence[Judged]) -> Judged:
    return Judged(
        np.mean([judged.ndcg for judged in seeds], axis=0),
        {task: np.mean([judged.gauc[task] for judged in seeds], axis=0) for task in seeds[0].gauc},
    )


def report(
    record: Record,
    where: str,
    metric: str,
    values: NDArray[np.float64],
    first: NDArray[np.float64],
    members: NDArray[np.int64],
) -> str:
    """Add a metric and its difference from the first setting; return both as text."""
    told = ~np.isnan(values)
    if not told.any():
        return f"{metric} cannot be told"
    mean = bootstrap_mean(values[told], clusters=members[told])
    change = bootstrap_mean(values[told] - first[told], clusters=members[told])
    for quantity, found in ((metric, mean), (f"{metric}, less the first setting's", change)):
        record.add(f"{where}: {quantity}", found.mean, "", f"95 % interval {found.low:.4f} to {found.high:.4f}")
    return f"{metric} {_shown(mean, '')} ({_shown(change, '+')})"


def _shown(interval: Interval, sign: str) -> str:
    return f"{interval.mean:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def say(text: str) -> None:
    print(f"[{time.perf_counter() - STARTED:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

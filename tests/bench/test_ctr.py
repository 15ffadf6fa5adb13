from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from models.data.events import EventTable
from models.data.items import ItemTable
from models.data.schema import Action, Feature, FeatureSchema, Signal
from tests.bench.ctr.fieldwise import DCNv2, DeepFM, FieldwiseConfig
from tests.bench.ctr.log import ImpressionLog, Request, prepare
from tests.bench.ctr.offsets import replay_offsets
from tests.bench.ctr.table import flatten

HOUR_MS = 3_600_000
SCHEMA = FeatureSchema(
    item=(Feature("genre", "keyword_list"), Feature("year", "number")),
    user=(Feature("gender", "keyword"),),
    actions=(Action("watch", "rating"), Action("like", "rating", 4.0)),
    signals=(Signal("watch.1d", "watch", 24 * HOUR_MS), Signal("like.all", "like", None)),
    positive="like",
    tasks=("like",),
    history_length=10,
)


def make_log(num_events: int = 400) -> ImpressionLog:
    random = np.random.default_rng(2)
    keys = np.arange(1, 31, dtype=np.int64)
    items = ItemTable(SCHEMA)
    items.upsert(keys, [{"genre": [f"g{key % 4}", f"g{key % 7}"], "year": 1980 + int(key)} for key in keys])
    users = {user: {"gender": "fm"[user % 2]} for user in range(1, 13)}
    events = EventTable.from_columns(
        SCHEMA,
        user_keys=random.integers(1, 13, num_events),
        item_keys=random.choice(keys, num_events),
        types=["rating"] * num_events,
        values=random.integers(1, 6, num_events).astype(float),
        ts_ms=np.sort(random.integers(0, 500, num_events)) * HOUR_MS,
    )
    requests = [
        Request(
            int(events.user_keys[row]),
            int(events.ts_ms[row]),
            random.choice(keys, 4, replace=False),
            random.random((4, 1)) < 0.4,
            np.full((4, 1), float(row % 2), dtype=np.float32),
        )
        for row in range(50, num_events)
    ]
    splits = tuple(int(events.ts_ms[int(num_events * share)]) for share in (0.6, 0.75, 0.9))
    return ImpressionLog(
        name="made up", schema=SCHEMA, items=items, users=users, events=events, requests=requests,
        splits_ms=splits, context_names=("odd",),
    )  # fmt: skip


def test_no_feature_changes_when_what_comes_later_is_removed() -> None:
    log = make_log()
    cut_ms = int(log.events.ts_ms[300])
    whole = prepare(log)
    past = prepare(replace(log, events=log.events.between(None, cut_ms)))
    compared = 0
    for split, examples in whole.examples.items():
        for with_future, without in zip(examples, past.examples[split], strict=True):
            if with_future.now_ms > cut_ms:
                continue
            compared += 1
            assert np.array_equal(with_future.features.candidates, without.features.candidates)
            assert np.array_equal(with_future.features.member, without.features.member)
            assert np.array_equal(with_future.user.history.keys, without.user.history.keys)
            assert not len(with_future.user.history) or with_future.user.history.ts_ms[-1] < with_future.now_ms
    assert compared > 200


def test_table_reads_vocabularies_and_scales_from_training_rows_only() -> None:
    log = make_log()
    whole = flatten(prepare(log))
    train = [request for request in log.requests if request.now_ms < log.splits_ms[0]]
    later = [
        request._replace(keys=request.keys + 1_000_000)
        for request in log.requests
        if request.now_ms >= log.splits_ms[0]
    ]
    changed = flatten(prepare(replace(log, requests=[*train, *later])))
    assert changed.single_sizes == whole.single_sizes and changed.list_sizes == whole.list_sizes
    assert np.array_equal(changed.splits["train"].numbers, whole.splits["train"].numbers)
    place = whole.single_names.index("item id")
    assert (changed.splits["test"].singles[:, place] == 0).all()


def test_deepfm_and_dcnv2_follow_the_published_formulas() -> None:
    table = flatten(prepare(make_log()))
    rows, config = table.splits["train"], FieldwiseConfig(dim=3, hidden=(5,), dropout=0.0)
    numbers, singles = torch.from_numpy(rows.numbers[:6]), torch.from_numpy(rows.singles[:6])
    lists = [torch.from_numpy(column[:6]) for column in rows.lists]
    torch.manual_seed(0)
    deep, cross = DeepFM(table, config).eval(), DCNv2(table, config).eval()
    for parameter in (*deep.parameters(), *cross.parameters()):
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        vectors = torch.cat([numbers[:, :, None] * deep.number_vectors, deep.fields(singles, lists)], dim=1)
        pairs = torch.zeros(6)
        for one in range(vectors.shape[1]):
            for other in range(one):
                pairs += (vectors[:, one] * vectors[:, other]).sum(dim=1)
        first = deep.number_weights(numbers)[:, 0] + deep.weights(singles, lists).sum(dim=(1, 2))
        expected = first + pairs + deep.mlp(vectors.flatten(1))[:, 0]
        torch.testing.assert_close(deep(numbers, singles, lists), expected, rtol=1e-4, atol=1e-3)

        x0 = torch.cat([numbers, cross.fields(singles, lists).flatten(1)], dim=1)
        x = x0
        for layer in cross.crosses:
            x = torch.stack([x[row] + x0[row] * (layer.weight @ x[row] + layer.bias) for row in range(6)])
        expected = torch.cat([x, cross.mlp(x0)], dim=1) @ cross.head.weight[0] + cross.head.bias
        torch.testing.assert_close(cross(numbers, singles, lists), expected, rtol=1e-4, atol=1e-2)


def test_popularity_offsets_learn_what_the_model_misses_and_only_from_the_past() -> None:
    prepared = prepare(make_log())
    flat = {split: np.zeros(len(prepared.labels(split))) for split in ("validation", "test", "later")}
    found = replay_offsets(prepared, flat)
    assert 0 <= found.num_young <= sum(len(prepared.labels(split)) for split in ("test", "later"))
    # One model that is level everywhere ranks by chance; labels here have no popularity to be learned.
    assert abs(found.auc.mean) < 0.1 and found.auc.low <= found.auc.mean <= found.auc.high

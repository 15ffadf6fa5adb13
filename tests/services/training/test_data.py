"""What training reads of the archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from services.datasets.dataset import Dataset
from services.keys import keys_of
from services.storage.events import IMPRESSION, Event
from services.storage.storage import Storage
from services.training.data import load_training_data
from tests.services.serving.world import DATASET, NUM_ITEMS, attributes_of, make_events

NOW_MS = 1_750_000_000_000


def test_impressions_of_members_stand_beside_the_actions_and_move_nothing(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text(DATASET)
    schema = Dataset.load(tmp_path / "dataset.toml").feature_schema()
    shown = [
        Event(
            event_id=f"{user}-{number}", user_id=user, item_id=f"item-{number}", type=IMPRESSION, ts_ms=NOW_MS + number
        )
        for user in ("user-3", "anonymous:x")
        for number in range(5)
    ]
    with Storage.open(data_dir=tmp_path / "data", role="prepare") as storage:
        storage.items.put_many((f"item-{item}", attributes_of(item)) for item in range(NUM_ITEMS))
        storage.archive.write_import("world", 0, make_events(NOW_MS))
        before = load_training_data(storage, schema)
        storage.archive.write_import("shown", 0, shown)
        data = load_training_data(storage, schema)
    assert len(before.impressions) == 0 and len(data.impressions) == 5
    assert data.impressions.user_keys.tolist() == keys_of(["user-3"]).tolist() * 5
    assert not data.impressions.action_masks.any()
    assert np.array_equal(data.events.ts_ms, before.events.ts_ms) and data.window_ms == before.window_ms

"""The posterior of a really trained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.state import History, UserState
from models.ranking.exploration import Draws
from models.ranking.model import RankingModel
from tests.models.world import SCHEMA, World


def test_a_trained_model_draws_around_its_scores(ranking: RankingModel, world: World, tmp_path: Path) -> None:
    assert ranking.exploration is not None and ranking.exploration.trunk == ranking.version
    keys = world.items.keys()[:40]
    request = (
        UserState({}, History.empty()),
        world.items.gather(keys),
        np.zeros((40, len(SCHEMA.signals))),
        np.full(40, np.nan, np.float32),
        int(world.events.ts_ms[-1]),
    )
    history = world.items.gather(np.zeros(0, np.int64))
    scores = ranking.score(*request, history_items=history)
    probabilities, drawn = ranking.draw(*request, Draws(1, 200, 1.0), history_items=history)
    assert np.allclose(probabilities, scores, atol=1e-6) and drawn.shape == (201, 40, 2)
    assert (drawn[..., SCHEMA.tasks.index("like")] <= drawn[..., SCHEMA.tasks.index("watch")]).all()
    assert (drawn.std(axis=0) > 0).all()
    narrow = ranking.draw(*request, Draws(1, 200, 0.1), history_items=history)[1]
    assert narrow.std(axis=0).mean() < 0.3 * drawn.std(axis=0).mean()
    nothing = (request[0], world.items.gather(keys[:0]), request[2][:0], request[3][:0], request[4])
    assert ranking.draw(*nothing, Draws(1, 3, 1.0), history_items=history)[1].shape == (4, 0, 2)

    ranking.save(tmp_path)
    again = RankingModel.load(tmp_path, SCHEMA)
    assert np.allclose(again.draw(*request, Draws(1, 200, 1.0), history_items=history)[1], drawn, atol=1e-6)
    without = RankingModel(SCHEMA, ranking.config, ranking.network, ranking.calibration)
    with pytest.raises(ValueError, match="no posterior"):
        without.draw(*request, Draws(1, 3, 1.0), history_items=history)

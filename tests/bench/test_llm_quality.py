"""The quality benchmark's own parts: which ratings are asked, what is scored, and how it is judged."""

from __future__ import annotations

import numpy as np
import pytest

from models.decoder.rehearsal import RehearsalConfig
from models.decoder.telling import interactions_of
from models.decoder.verbalizer.numbers import NumberWords
from tests.bench.llm_quality import first_of_each, fit_blend
from tests.bench.llmquality.judge import Jury
from tests.bench.llmquality.movielens import Films
from tests.models.decoder.test_telling import ITEMS, SCHEMA, TASK, ratings
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer


@pytest.fixture(scope="module")
def films() -> Films:
    events, exposures = ratings(400)
    told = interactions_of(SCHEMA, ITEMS, events, exposures, NumberWords())
    lengths = np.zeros(len(exposures), dtype=np.int64)
    return Films(
        schema=SCHEMA, tasks={"like": TASK}, users={}, exposures=exposures, interactions=told, length=lengths,
        rate=np.full(len(exposures), 0.5), validation_ms=events.quantile_ms(0.85), test_ms=events.quantile_ms(0.9),
    )  # fmt: skip


def test_only_ratings_of_the_window_are_scored(films: Films) -> None:
    decoder, tokenizer = tiny_decoder(max_position_embeddings=4096), tiny_tokenizer()
    scores = films.score(decoder, TASK, tokenizer, RehearsalConfig())
    assert np.array_equal(~np.isnan(scores), films.exposures.ts_ms >= films.test_ms)
    wanted = first_of_each(films, films.test_ms, None, 2)
    some = films.score(decoder, TASK, tokenizer, RehearsalConfig(), wanted=wanted)
    assert np.array_equal(~np.isnan(some), wanted)
    assert np.allclose(some[wanted], scores[wanted], atol=1e-4)
    before = films.lesson(TASK, tokenizer, films.test_ms)
    assert sum(len(told.turns) for told in before.conversations) == int((films.exposures.ts_ms < films.test_ms).sum())


def test_each_member_gives_the_first_ratings_of_a_window(films: Films) -> None:
    wanted = first_of_each(films, films.validation_ms, films.test_ms, 3)
    times_ms, members = films.exposures.ts_ms, films.exposures.user_keys
    inside = (times_ms >= films.validation_ms) & (times_ms < films.test_ms)
    assert not (wanted & ~inside).any()
    for member in np.unique(members[inside]):
        rows = np.flatnonzero(inside & (members == member))
        last_ms = times_ms[rows[min(3, len(rows)) - 1]]
        assert wanted[rows].tolist() == (times_ms[rows] <= last_ms).tolist()


def test_the_blend_reads_the_validation_window_only(films: Films) -> None:
    scores = np.random.default_rng(0).normal(size=len(films.exposures))
    scores[films.exposures.ts_ms < films.validation_ms] = np.nan
    blend = fit_blend(films, scores, np.zeros(len(scores)))
    assert blend.report is not None
    assert blend.report.num_examples == int(
        ((films.exposures.ts_ms >= films.validation_ms) & (films.exposures.ts_ms < films.test_ms)).sum()
    )


def test_systems_are_compared_over_the_same_resamples() -> None:
    random = np.random.default_rng(1)
    labels, members = random.random(2000) < 0.5, random.integers(0, 80, 2000)
    good = labels + random.normal(size=2000)
    bad = labels + 3.0 * random.normal(size=2000)
    jury = Jury(labels, members)
    gain = jury.compare(good, bad)
    assert gain.auc.low > 0.05 and gain.within.low > 0.05
    assert gain.auc.mean == pytest.approx(jury.judge(good).auc.mean - jury.judge(bad).auc.mean)
    assert jury.compare(good, good).auc == (0.0, 0.0, 0.0)

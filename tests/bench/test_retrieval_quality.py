from __future__ import annotations

from models.data.jobs.vocabulary import TINY
from models.data.jobs.world import JobsConfig
from tests.bench.record import Record
from tests.bench.retrieval_quality.jobs import make_case
from tests.bench.retrieval_quality.links import measure_case


def test_the_links_part_runs_on_a_small_world() -> None:
    record = Record("retrieval_quality")
    config = JobsConfig(num_members=500, num_jobs=250, num_companies=20, num_days=20)
    measure_case(record, make_case(config, TINY))
    figures = record.figures
    assert 0.3 < figures["links_precision"] <= 1.0 and 0.1 < figures["links_recall"] <= 1.0
    assert figures["links_fewer_than_ratio"] > 3
    assert figures["links_auc"] > figures["links_ratio_auc"] - 0.05
    assert figures["expected_hires_per_100_links"] > figures["expected_hires_per_100_random"]

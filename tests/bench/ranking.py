"""The ranker beside others on public impression logs, its parts one by one, calibration, drift, and time.

`python -m tests.bench.ranking [--quick] [--json FILE]`, with `pip install -e '.[bench]'`. Three logs, split by time
(tests/bench/ctr): ratings of MovieLens-100k, baskets of The Complete Journey over candidates from the past, and its
trips over the promotions of their store and week. Each model is tuned on the validation window with the same features
and judged on the two windows after it; intervals are 95 %, by resampling members.

Figures: auc_gain_over_dcnv2, auc_gain_over_lightgbm (the smallest over the logs), their lower ends by log, and those of
tests.bench.ranking_latency (rank500_p99_ms, rank_vs_eager, rank_vs_onnx).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from models.evaluate import Interval, reliability
from models.ranking.calibration import Isotonic
from models.ranking.network import NetworkConfig
from models.ranking.training import RankingConfig
from tests.bench import msam, ranking_latency
from tests.bench.ctr.ablation import MAIN_STEPS, STEPS, ablate
from tests.bench.ctr.compare import OURS, TEST, compare, drift, joined, sigmoid
from tests.bench.ctr.completejourney import Journey
from tests.bench.ctr.incremental import increment
from tests.bench.ctr.log import ImpressionLog, PreparedLog, prepare
from tests.bench.ctr.movielens import movielens_log
from tests.bench.ctr.offsets import replay_offsets
from tests.bench.record import Record

STARTED = time.perf_counter()
BATCH_ROWS = 800
"""Candidates of a batch of ours: logs differ in how many a request has."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller searches, fewer seeds for the parts")
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(2)
    record = Record("ranking")
    gains: dict[str, list[float]] = {"LightGBM": [], "DCNv2": []}
    prepared_logs: list[PreparedLog] = []
    for log in logs():
        prepared = prepare(log, say)
        found = compare(prepared, settings(prepared, options.quick), options.quick, say)
        for model, judged in found.judged.items():
            where = f"{found.name}: {model}"
            add(record, f"{where}, AUC", judged.auc)
            add(record, f"{where}, gAUC", judged.gauc)
            record.add(f"{where}, log loss", judged.log_loss, "nats")
            record.add(f"{where}, NE", judged.entropy, "ratio")
            record.add(f"{where}, ECE", judged.calibration_error, "probability")
            record.add(f"{where}, ECE before calibration", judged.raw_calibration_error, "probability")
        for model, gain in found.gains.items():
            add(record, f"{found.name}: AUC of ours - {model}", gain)
        for model, smallest in gains.items():
            smallest.append(found.gains[model].mean)
        for window, figures in drift(prepared, found.logits[OURS]).items():
            for name, value in figures.items():
                record.add(f"{found.name}: ours, {window}, {name}", value, "")
        add_reliability(record, prepared, found.logits[OURS])
        offsets = replay_offsets(prepared, found.logits[OURS])
        add(record, f"{found.name}: popularity offsets, change of AUC", offsets.auc)
        add(record, f"{found.name}: popularity offsets, change of log loss", offsets.log_loss)
        add(record, f"{found.name}: popularity offsets, items younger than a day, change of AUC", offsets.young_auc)
        add(record, f"{found.name}: the same, change of log loss", offsets.young_log_loss)
        record.add(f"{found.name}: rows of items younger than a day", offsets.num_young, "rows")
        ahead = ", ".join(f"{model} {gain.mean:+.4f}" for model, gain in found.gains.items())
        say(f"{found.name}: AUC of ours against {ahead}")
        if len(prepared_logs) < 2:  # MovieLens and the baskets
            prepared_logs.append(prepared)
    record.figures["auc_gain_over_dcnv2"] = min(gains["DCNv2"])
    record.figures["auc_gain_over_lightgbm"] = min(gains["LightGBM"])
    smallest_log, baskets = prepared_logs
    parts(record, smallest_log, options.quick)
    add_parts(record, baskets, range(1 if options.quick else 3), MAIN_STEPS)
    say("latency")
    ranking_latency.measure(record, options.quick)
    record.write(options.json)
    print(record.table())
    return 0


def logs() -> Iterator[ImpressionLog]:
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        yield movielens_log(Path(folder))
    journey = Journey()
    yield journey.baskets()
    yield journey.promotions()


def settings(prepared: PreparedLog, quick: bool) -> list[RankingConfig]:
    """Return the settings of ours that the validation window chooses from: as many as DCNv2 has."""
    base = default(prepared)
    found = [base, replace(base, table_learning_rate=0.01)]
    if not quick:
        found += [
            replace(base, num_epochs=4.0),
            replace(base, network=replace(base.network, dropout=0.3), num_epochs=3.0),
        ]
    return found


def default(prepared: PreparedLog) -> RankingConfig:
    """Return the product's training with the batch in candidates, and no softmax over a request's few candidates."""
    training = prepared.examples["train"]
    rows = sum(len(example.keys) for example in training) / len(training)
    return RankingConfig(
        network=replace(NetworkConfig(), history="causal"),
        listwise_weight=0.0,
        batch_requests=max(8, round(BATCH_ROWS / rows)),
        table_learning_rate=0.001,
        fisher_requests=128,
    )


def parts(record: Record, prepared: PreparedLog, quick: bool) -> None:
    """What depends on training many times over is done on the smallest log."""
    config = default(prepared)
    add_parts(record, prepared, range(2 if quick else 3), tuple(STEPS))
    found = increment(prepared, config)
    add(record, "incremental: AUC after training on - anew", found.gain)
    record.add("incremental: AUC anew", found.cold_auc, "")
    record.add("incremental: AUC before training on", found.stale_auc, "")
    record.add("incremental: time over that of anew", found.seconds / found.cold_seconds, "ratio")
    say("incremental training measured")
    schema, items = prepared.log.schema, prepared.log.items
    # A part of the requests: SAM takes two passes and is run at equal time as well.
    compared = msam.compare_optimizers(
        schema,
        items,
        prepared.examples["train"][-8000:],
        [example for split in TEST for example in prepared.examples[split]],
        config,
        seeds=range(1 if quick else 3),
    )
    for title, rows in compared.items():
        for row in rows:
            note = f"seed {row.seed}, {row.num_steps} steps"
            record.add(f"optimizer, {title}: {row.name}, AUC by request", row.auc, "", note)
            record.add(f"optimizer, {title}: {row.name}, log loss", row.log_loss, "nats", note)
            record.add(f"optimizer, {title}: {row.name}, time", row.seconds, "s", note)
            record.add(f"optimizer, {title}: {row.name}, top eigenvalue", row.top_eigenvalue, "", note)
    say("optimizers compared")


def add_parts(record: Record, prepared: PreparedLog, seeds: range, names: Sequence[str]) -> None:
    for step in ablate(prepared, default(prepared), seeds, say, names):
        paper = "" if step.paper is None else f"; the paper, another metric: {step.paper:+.2f} %"
        note = f"95 % interval {step.ours.low:.2f} to {step.ours.high:.2f}, {len(seeds)} seeds{paper}"
        record.add(f"{prepared.log.name}: part: {step.name}, change of AUC", step.ours.mean, "%", note)


def add(record: Record, quantity: str, interval: Interval) -> None:
    record.add(quantity, interval.mean, "", f"95 % interval {interval.low:.4f} to {interval.high:.4f}")


def add_reliability(record: Record, prepared: PreparedLog, logits) -> None:  # type: ignore[no-untyped-def]
    labels = joined({split: prepared.labels(split)[:, 0] for split in TEST})
    isotonic = Isotonic.fit(logits["validation"].astype("float32"), prepared.labels("validation")[:, 0])
    predicted, observed, sizes = reliability(sigmoid(isotonic(joined(logits).astype("float32"))), labels, num_bins=10)
    for place, (expected, rate, size) in enumerate(zip(predicted, observed, sizes, strict=True), start=1):
        record.add(
            f"{prepared.log.name}: ours, reliability, tenth {place}", rate, "", f"predicted {expected:.4f}, {size} rows"
        )


def say(text: str) -> None:
    print(f"[{time.perf_counter() - STARTED:5.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

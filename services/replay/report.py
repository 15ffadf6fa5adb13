"""A replay as text and as JSON: every figure with its 95 % interval, differences on the same requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluate import Interval, bootstrap_mean
from services.replay.job import Replay, Scores
from services.replay.systems import RANKED

SHOWN = ("recall@10", "ndcg@10", "dcg@10", "recall@50", "recall@100")
COMPARED = RANKED


def document(outcome: Replay) -> dict[str, Any]:
    """Return everything as one JSON-ready mapping."""
    return {
        "split": _instant(outcome.split_ms),
        "test_share": outcome.config.test_share,
        "num_train_events": outcome.num_train,
        "num_test_events": outcome.num_test,
        "num_sessions": outcome.num_sessions,
        "num_items_at_split": outcome.num_items_at_split,
        "num_candidates": outcome.config.num_candidates,
        "seed": outcome.config.seed,
        "versions": dict(outcome.versions),
        "train_seconds": round(outcome.train_seconds, 1),
        "walk_seconds": round(outcome.walk_seconds, 1),
        "protocols": {
            name: {
                "num_requests": len(scores.requests),
                "num_users": len(_users(scores)),
                "num_warm_requests": sum(request.warm for request in scores.requests),
                "systems": {
                    system: {metric: _plain(interval) for metric, interval in metrics.items()}
                    for system, metrics in _intervals(scores, outcome.config.seed).items()
                },
                "paired_difference_of_" + COMPARED: _differences(scores, outcome.config.seed),
            }
            for name, scores in (("sessions", outcome.sessions), ("at the split", outcome.at_split))
        },
    }


def text(outcome: Replay) -> str:
    """Return the report for a terminal."""
    lines = [
        f"split at {_instant(outcome.split_ms)}: {outcome.num_train} events before, {outcome.num_test} after; "
        f"{outcome.num_items_at_split} items alive at the split",
        f"trained on the past in {outcome.train_seconds:.0f} s, replayed in {outcome.walk_seconds:.0f} s; "
        f"seed {outcome.config.seed}; retrieval {outcome.versions['retrieval_model']}, "
        f"ranker {outcome.versions['ranker']}",
    ]
    warm = [request.warm for request in outcome.sessions.requests]
    lines += [
        "",
        f"Sessions: {len(warm)} of {outcome.num_sessions} in the test window liked something new and are judged "
        f"({sum(warm)} by members known before the split); full catalogue, seen items removed",
        *_table(outcome.sessions, outcome.config.seed),
    ]
    for name, chosen in (("members known before the split", True), ("new members", False)):
        part = _part(outcome.sessions, np.array(warm) == chosen)
        if len(part.requests):
            lines += ["", f"Sessions of {name}: {len(part.requests)}", *_table(part, outcome.config.seed)]
    lines += [
        "",
        f"At the split: one request for each of {len(outcome.at_split.requests)} known members, nothing after "
        "the split visible",
        *_table(outcome.at_split, outcome.config.seed),
    ]
    return "\n".join(lines)


def _table(scores: Scores, seed: int) -> list[str]:
    if not scores.requests:
        return ["  no request could be judged"]
    intervals = _intervals(scores, seed)
    width = max(len(system) for system in intervals)
    lines = [f"  {'':{width}}  " + "  ".join(f"{metric:>20}" for metric in SHOWN)]
    for system, metrics in intervals.items():
        cells = [f"{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in (metrics[name] for name in SHOWN)]
        lines.append(f"  {system:{width}}  " + "  ".join(f"{cell:>20}" for cell in cells))
    lines.append(f"  {COMPARED} minus, on the same requests (95 % interval):")
    for system, differences in _differences(scores, seed).items():
        pairs = (differences[name] for name in SHOWN)
        cells = [f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for d in pairs]
        lines.append(f"  {system:{width}}  " + "  ".join(f"{cell:>20}" for cell in cells))
    return lines


def _intervals(scores: Scores, seed: int) -> dict[str, dict[str, Interval]]:
    users = _users_of(scores)
    return {
        system: {metric: bootstrap_mean(column, clusters=users, seed=seed) for metric, column in metrics.items()}
        for system, metrics in scores.values.items()
        if scores.requests
    }


def _differences(scores: Scores, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    users, ours = _users_of(scores), scores.values.get(COMPARED, {})
    return {
        system: {
            metric: _plain(bootstrap_mean(ours[metric] - column, clusters=users, seed=seed))
            for metric, column in metrics.items()
        }
        for system, metrics in scores.values.items()
        if system != COMPARED and scores.requests
    }


def _part(scores: Scores, chosen: NDArray[np.bool_]) -> Scores:
    requests = [request for request, here in zip(scores.requests, chosen.tolist(), strict=True) if here]
    values = {
        system: {metric: column[chosen] for metric, column in metrics.items()}
        for system, metrics in scores.values.items()
    }
    return Scores(requests, values)


def _users_of(scores: Scores) -> NDArray[np.int64]:
    return np.array([request.user_key for request in scores.requests], dtype=np.int64)


def _users(scores: Scores) -> set[int]:
    return set(_users_of(scores).tolist())


def _plain(interval: Interval) -> dict[str, float]:
    return {"value": interval.mean, "low": interval.low, "high": interval.high}


def _instant(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

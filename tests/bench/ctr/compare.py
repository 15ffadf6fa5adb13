"""The rankers of one log side by side: fitted, calibrated on the validation window, judged on the test windows."""

# N = rows, T = tasks

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluate import (
    Interval,
    Statistic,
    auc_statistic,
    bootstrap,
    expected_calibration_error,
    grouped_auc_statistic,
    log_loss,
    normalised_entropy,
    observed_over_expected,
)
from models.ranking.calibration import Isotonic
from models.ranking.training import RankingConfig
from tests.bench.ctr.classic import LogisticConfig, TreesConfig, fit_logistic, fit_trees
from tests.bench.ctr.fieldwise import DCNv2, DeepFM, FieldwiseConfig, fit_fieldwise
from tests.bench.ctr.log import PreparedLog
from tests.bench.ctr.ours import fit_ours
from tests.bench.ctr.table import Table, flatten

Logits = Mapping[str, NDArray[np.floating]]
"""f[N] by split, training's left out."""
Progress = Callable[[str], None]

OURS = "ours"
TEST = ("test", "later")


@dataclass(frozen=True, slots=True)
class Judged:
    """One model's figures on the test windows together."""

    auc: Interval
    gauc: Interval
    log_loss: float
    entropy: float
    calibration_error: float
    """The last three after an isotonic map fitted on the validation window, as every model is given one."""
    raw_calibration_error: float


@dataclass(frozen=True, slots=True)
class Comparison:
    name: str
    logits: Mapping[str, Logits]
    judged: Mapping[str, Judged]
    gains: Mapping[str, Interval]
    """AUC of ours less that of each other model, over the same resamples of members."""


def searches(quick: bool) -> dict[str, Callable[[Table, int], list[tuple[Logits, float]]]]:
    """Return, by model, what fits each setting of its search: the quick form takes the settings that won most often."""
    trees = [TreesConfig(num_leaves=15), TreesConfig()]
    logistic = [LogisticConfig(penalty=100.0), LogisticConfig(penalty=10.0)]
    fieldwise = [FieldwiseConfig(), FieldwiseConfig(learning_rate=3e-3, dropout=0.4)]
    if not quick:
        trees += [
            TreesConfig(num_leaves=7),
            TreesConfig(num_leaves=15, learning_rate=0.03, min_child_samples=300, feature_fraction=0.4),
            TreesConfig(num_leaves=63, min_child_samples=300, feature_fraction=0.5, lambda_l2=20.0),
            TreesConfig(num_leaves=15, with_ids=True),
        ]
        logistic += [LogisticConfig(penalty=1.0), LogisticConfig(penalty=1000.0)]
        fieldwise += [
            FieldwiseConfig(dim=16, embedding_decay=1e-4),
            FieldwiseConfig(learning_rate=5e-4, embedding_decay=1e-4, hidden=(256, 128)),
        ]
    return {
        "logistic regression": lambda table, seed: [fit_logistic(table, config, seed) for config in logistic],
        "LightGBM": lambda table, seed: [fit_trees(table, config, seed) for config in trees],
        "DeepFM": lambda table, seed: [fit_fieldwise(DeepFM, table, config, seed) for config in fieldwise],
        "DCNv2": lambda table, seed: [fit_fieldwise(DCNv2, table, config, seed) for config in fieldwise],
    }


def compare(prepared: PreparedLog, ours: list[RankingConfig], quick: bool, progress: Progress) -> Comparison:
    """Fit every model with every setting of its search; the setting with the best validation AUC is judged."""
    table = flatten(prepared)
    name = prepared.log.name
    logits: dict[str, Logits] = {}
    for model, search in searches(quick).items():
        fitted = search(table, 0)
        logits[model], reached = max(fitted, key=lambda found: found[1])
        progress(f"{name}: {model}, validation AUC {reached:.4f}")
    tried = [fit_ours(prepared, config) for config in ours]
    best, reached = max(tried, key=lambda found: found[1])
    logits[OURS] = {split: scores[:, 0] for split, scores in best.items()}
    progress(f"{name}: {OURS}, validation AUC {reached:.4f}")
    labels = joined({split: prepared.labels(split)[:, 0] for split in TEST})
    members = joined({split: prepared.user_keys[split] for split in TEST})
    judged = {
        model: judge(scores, prepared.labels("validation")[:, 0], labels, members) for model, scores in logits.items()
    }
    own = auc_statistic(joined(logits[OURS]), labels)
    gains = {
        model: bootstrap(_minus(own, auc_statistic(joined(scores), labels)), members)
        for model, scores in logits.items()
        if model != OURS
    }
    return Comparison(name, logits, judged, gains)


def judge(
    logits: Logits, validation_labels: NDArray[np.bool_], labels: NDArray[np.bool_], members: NDArray[np.int64]
) -> Judged:
    scores = joined(logits)
    isotonic = Isotonic.fit(logits["validation"].astype(np.float32), validation_labels)
    calibrated = sigmoid(isotonic(scores.astype(np.float32)))
    return Judged(
        bootstrap(auc_statistic(scores, labels), members),
        bootstrap(grouped_auc_statistic(scores, labels, members), members),
        log_loss(calibrated, labels),
        normalised_entropy(calibrated, labels),
        expected_calibration_error(calibrated, labels),
        expected_calibration_error(sigmoid(scores), labels),
    )


def drift(prepared: PreparedLog, logits: Logits) -> dict[str, dict[str, float]]:
    """Return calibration by window, raw and through the map fitted on the validation window: O/E, ECE, NE."""
    fit_on = prepared.labels("validation")[:, 0]
    isotonic = Isotonic.fit(logits["validation"].astype(np.float32), fit_on)
    found = {}
    for split in ("validation", *TEST):
        labels = prepared.labels(split)[:, 0]
        for form, probabilities in (
            ("raw", sigmoid(logits[split])),
            ("calibrated", sigmoid(isotonic(logits[split].astype(np.float32)))),
        ):
            found[f"{split}, {form}"] = {
                "O/E": observed_over_expected(probabilities, labels),
                "ECE": expected_calibration_error(probabilities, labels),
                "NE": normalised_entropy(probabilities, labels),
            }
    return found


def joined(parts: Mapping[str, NDArray]) -> NDArray:  # type: ignore[type-arg]
    """Return the two test windows, one after the other."""
    return np.concatenate([parts[split] for split in TEST])


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -30.0, 30.0)))


def _minus(ours: Statistic, other: Statistic) -> Statistic:
    return lambda weights: ours(weights) - other(weights)

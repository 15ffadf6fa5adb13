"""Logistic regression and LightGBM on the flat table."""

# N = rows

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluate import auc
from tests.bench.ctr.table import Rows, Table

Fitted = tuple[dict[str, NDArray[np.float64]], float]
"""Logits by split (all but training's), and validation AUC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticConfig:
    penalty: float = 1.0
    """L2 over all rows: 1 / scikit-learn's C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreesConfig:
    num_leaves: int = 31
    learning_rate: float = 0.05
    min_child_samples: int = 100
    feature_fraction: float = 0.7
    lambda_l2: float = 5.0
    with_ids: bool = False
    """Member and item id among the categorical columns."""


def fit_logistic(table: Table, config: LogisticConfig, seed: int) -> Fitted:
    """Fit on numbers and one-hot fields, lists many-hot."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    def matrix(rows: Rows) -> sparse.csr_matrix:
        parts = [sparse.csr_matrix(rows.numbers)]
        fields = [
            *((rows.singles[:, [place]], size) for place, size in enumerate(table.single_sizes)),
            *zip(rows.lists, table.list_sizes, strict=True),
        ]
        for codes, size in fields:
            row, place = np.nonzero(codes)
            ones = np.ones(len(row), dtype=np.float32)
            parts.append(sparse.csr_matrix((ones, (row, codes[row, place])), shape=(len(rows), size)))
        return sparse.hstack(parts, format="csr")

    model = LogisticRegression(C=1.0 / config.penalty, solver="lbfgs", max_iter=300, tol=1e-3, random_state=seed)
    model.fit(matrix(table.splits["train"]), table.splits["train"].labels)
    return _judged(table, lambda rows: model.decision_function(matrix(rows)))


def fit_trees(table: Table, config: TreesConfig, seed: int) -> Fitted:
    """Boost until validation AUC has not risen for 50 trees."""
    import lightgbm

    skipped = set() if config.with_ids else {"member id", "item id"}
    columns = [place for place, name in enumerate(table.single_names) if name not in skipped]

    def matrix(rows: Rows) -> NDArray[np.float32]:
        hot = [
            _many_hot(codes, size) for codes, size in zip(rows.lists, table.list_sizes, strict=True) if size <= 64
        ]  # titles' words are left out
        return np.hstack([rows.numbers, rows.singles[:, columns], *hot]).astype(np.float32)

    num_numbers = table.splits["train"].numbers.shape[1]
    data = {
        split: lightgbm.Dataset(
            matrix(table.splits[split]),
            table.splits[split].labels,
            categorical_feature=list(range(num_numbers, num_numbers + len(columns))),
            free_raw_data=True,
        )
        for split in ("train", "validation")
    }
    data["validation"].reference = data["train"]
    parameters = {name: value for name, value in asdict(config).items() if name != "with_ids"}
    parameters |= {
        "objective": "binary", "metric": "auc", "verbosity": -1, "seed": seed, "num_threads": 0, "bagging_freq": 1,
        "bagging_fraction": 0.8, "deterministic": True, "force_row_wise": True,
    }  # fmt: skip
    model = lightgbm.train(
        parameters,
        data["train"],
        num_boost_round=1500,
        valid_sets=[data["validation"]],
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    return _judged(table, lambda rows: model.predict(matrix(rows), raw_score=True))


def _judged(table: Table, logits_of) -> Fitted:  # type: ignore[no-untyped-def]
    logits = {split: np.asarray(logits_of(rows)) for split, rows in table.splits.items() if split != "train"}
    return logits, auc(logits["validation"], table.splits["validation"].labels)


def _many_hot(codes_NW: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    hot = np.zeros((len(codes_NW), size), dtype=np.float32)
    np.put_along_axis(hot, codes_NW, 1.0, axis=1)
    hot[:, 0] = 0.0
    return hot

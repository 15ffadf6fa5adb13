"""Long dwell: a dwell above what is usual where it happened."""

# n = rows, C = columns of a cluster

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
_DAY_MS = 86_400_000
_POSITION_EDGES = np.array([1, 2, 3, 5, 10])


@dataclass(frozen=True, slots=True, kw_only=True)
class DwellConfig:
    share: float = 0.9
    """A dwell is long when it is above this share of its cluster's."""
    min_count: int = 5000
    """A cluster with fewer dwells falls back to the wider one, without its last column."""

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0 or self.min_count < 1:
            raise ValueError(f"share must be inside 0..1 and min_count at least 1: {self}")


class DwellThresholds:
    """A threshold per cluster.

    LiRank (arXiv 2402.06859), section 3.7: dwell itself is too noisy to regress, and one threshold favours long
    content, so a dwell is compared with a percentile among those at the same position, of the same type of content on
    the same kind of device. A threshold is one of the dwells (no interpolation), so labels do not change when dwell
    is rescaled by any increasing function.

    A cluster is a row of integers, the most telling column first, say (type, position bucket, device): a row with too
    few dwells falls back to all that share its columns but the last, and so on to all dwells.
    """

    def __init__(self, config: DwellConfig, num_columns: int, levels: Mapping[tuple[int, ...], float]) -> None:
        self.config = config
        self.num_columns = num_columns
        self._levels = dict(levels)
        """Thresholds by the leading columns of a cluster; () is that of all dwells."""

    @classmethod
    def fit(
        cls, dwell: NDArray[np.floating], clusters_NC: NDArray[np.int64], config: DwellConfig | None = None
    ) -> DwellThresholds:
        """Fit on n dwells, in any unit. Raises ValueError for none, for nan and for other lengths."""
        config = config or DwellConfig()
        if not len(dwell) or np.isnan(dwell).any() or len(clusters_NC) != len(dwell):
            raise ValueError(f"{len(dwell)} dwells and {len(clusters_NC)} clusters; expected as many, some, and no nan")
        levels: dict[tuple[int, ...], float] = {(): _quantile(dwell, config.share)}
        num_columns = clusters_NC.shape[1]
        for width in range(1, num_columns + 1):
            distinct, inverse, counts = np.unique(
                clusters_NC[:, :width], axis=0, return_inverse=True, return_counts=True
            )
            order = np.argsort(inverse.reshape(-1), kind="stable")
            for cluster, rows in zip(distinct.tolist(), np.split(order, np.cumsum(counts)[:-1]), strict=True):
                if len(rows) >= config.min_count:
                    levels[tuple(cluster)] = _quantile(dwell[rows], config.share)
        return cls(config, num_columns, levels)

    def thresholds(self, clusters_NC: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return f64[n]: each row's threshold, to be kept with the training row so that its label can be made again."""
        if clusters_NC.shape[1] != self.num_columns:
            raise ValueError(f"clusters have {clusters_NC.shape[1]} columns; expected {self.num_columns}")
        distinct, inverse = np.unique(clusters_NC, axis=0, return_inverse=True)
        found = np.array([self._of(tuple(cluster)) for cluster in distinct.tolist()], dtype=np.float64)
        return found[inverse.reshape(-1)]

    def are_long(self, dwell: NDArray[np.floating], clusters_NC: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[n]; a dwell that is not known (nan) is not long."""
        long: NDArray[np.bool_] = dwell > self.thresholds(clusters_NC)
        return long

    def save(self, path: Path) -> None:
        """Write the thresholds as JSON."""
        levels = [[list(cluster), threshold] for cluster, threshold in self._levels.items()]
        document = {
            "format": FORMAT, "config": asdict(self.config), "num_columns": self.num_columns, "levels": levels
        }  # fmt: skip
        path.write_text(json.dumps(document) + "\n")

    @classmethod
    def load(cls, path: Path) -> DwellThresholds:
        """Read thresholds. Raises ValueError for another format."""
        document = json.loads(path.read_text())
        if document.get("format") != FORMAT:
            raise ValueError(f"{path}: format is {document.get('format')!r}, expected {FORMAT}")
        levels = {tuple(cluster): float(threshold) for cluster, threshold in document["levels"]}
        return cls(DwellConfig(**document["config"]), document["num_columns"], levels)

    def _of(self, cluster: tuple[int, ...]) -> float:
        for width in range(len(cluster), -1, -1):
            threshold = self._levels.get(cluster[:width])
            if threshold is not None:
                return threshold
        raise AssertionError("no threshold of all dwells")


def label_by_day(
    dwell: NDArray[np.floating],
    clusters_NC: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    config: DwellConfig | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return labels bool[n] and thresholds f64[n], each day's from the last earlier day that has dwells.

    As they would have been known on that day; those of the first day are its own.
    """
    days = np.asarray(ts_ms) // _DAY_MS
    labels, limits = np.zeros(len(dwell), dtype=np.bool_), np.full(len(dwell), np.nan)
    known = ~np.isnan(dwell)
    fitted: DwellThresholds | None = None
    for day in np.unique(days).tolist():
        rows = days == day
        usable = rows & known
        today = DwellThresholds.fit(dwell[usable], clusters_NC[usable], config) if usable.any() else None
        current = fitted or today
        if current is not None:
            limits[rows] = current.thresholds(clusters_NC[rows])
            labels[rows] = dwell[rows] > limits[rows]
        fitted = today or fitted
    return labels, limits


def position_bucket(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[n]: 0 for the first place, then 1, 2, 3-4, 5-9 and 10 on.

    Raises ValueError for a place below 0.
    """
    if len(positions) and int(positions.min()) < 0:
        raise ValueError(f"position is {int(positions.min())}; expected 0 or more")
    return np.searchsorted(_POSITION_EDGES, positions, side="right").astype(np.int64)


def _quantile(dwell: NDArray[np.floating], share: float) -> float:
    return float(np.quantile(dwell.astype(np.float64), share, method="inverted_cdf"))

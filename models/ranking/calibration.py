"""Isotonic calibration: from a logit to a probability that holds."""

# n = examples, K = knots, T = tasks

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.evaluate import expected_calibration_error, normalised_entropy, observed_over_expected

FORMAT = 2
_MAX_LOGIT = 15.0


def pool_adjacent_violators(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the non-decreasing fit of least weighted squares as (block means, block lengths).

    Ayer et al. 1955; one pass with a stack, linear in the number of values.
    """
    means: list[float] = []
    masses: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        means.append(value)
        masses.append(weight)
        lengths.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            mass = masses[-2] + masses[-1]
            mean = (means[-2] * masses[-2] + means[-1] * masses[-1]) / mass
            length = lengths[-2] + lengths[-1]
            del means[-1], masses[-1], lengths[-1]
            means[-1], masses[-1], lengths[-1] = mean, mass, length
    return np.array(means), np.array(lengths, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A strictly increasing, piecewise linear map of logits.

    Linear between knots; outside them parallel to the identity, so that order is kept where no data was.
    """

    raw: NDArray[np.float64]
    """f64[K], increasing: logits of the model. Empty: the identity."""
    calibrated: NDArray[np.float64]
    """f64[K], increasing."""

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return calibrated logits."""
        raw = logits.astype(np.float64)
        if not len(self.raw):
            return raw
        inside = np.interp(raw, self.raw, self.calibrated)
        below = np.minimum(raw - self.raw[0], 0.0)
        above = np.maximum(raw - self.raw[-1], 0.0)
        calibrated: NDArray[np.float64] = inside + below + above
        return calibrated

    @classmethod
    def fit(cls, logits: NDArray[np.float32], labels: NDArray[np.bool_], min_block: int = 50) -> Isotonic:
        """Fit on n held-out examples by pooling adjacent violators over groups of at least `min_block` examples.

        Groups, and half an event added to either side of every block, keep a rate of a few examples from becoming a
        probability of 0 or 1. With fewer than two groups the map is the identity.
        """
        order = np.argsort(logits, kind="stable")
        num_groups = min(200, len(order) // min_block)
        if num_groups < 2 or labels.all() or not labels.any():
            return cls(np.zeros(0), np.zeros(0))
        groups = np.array_split(order, num_groups)
        rates = np.array([labels[group].mean() for group in groups])
        sizes = np.array([len(group) for group in groups], dtype=np.float64)
        raw = np.array([logits[group].astype(np.float64).mean() for group in groups])
        _, lengths = pool_adjacent_violators(rates, sizes)
        edges = np.concatenate([[0], np.cumsum(lengths)])
        knots, values = [], []
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            size = sizes[start:stop].sum()
            events = (rates[start:stop] * sizes[start:stop]).sum()
            knots.append(float((raw[start:stop] * sizes[start:stop]).sum() / size))
            values.append(float(np.log((events + 0.5) / (size - events + 0.5))))
        return cls(*_increasing(np.array(knots), np.array(values)))


def make_consistent(
    probabilities_NT: NDArray[np.float64], implied: Sequence[tuple[int, int]], num_sweeps: int = 4
) -> NDArray[np.float64]:
    """Return probabilities in which no action is likelier than one that it implies.

    implied: (narrow, wide) places of tasks. Heads and maps are fitted one by one, so a like can come out likelier than
    a view. A pair out of order is set to its mean, in sweeps over the pairs: the projection onto the ordered pair,
    which is never further from true probabilities, as those are in order. What a last sweep leaves is cut off.
    """
    consistent = probabilities_NT.copy()
    for _ in range(num_sweeps if implied else 0):
        for narrow, wide in implied:
            wrong = consistent[:, narrow] > consistent[:, wide]
            mean = 0.5 * (consistent[wrong, narrow] + consistent[wrong, wide])
            consistent[wrong, narrow] = consistent[wrong, wide] = mean
    for narrow, wide in implied:
        consistent[:, wide] = np.maximum(consistent[:, wide], consistent[:, narrow])
    return consistent


class Fit(NamedTuple):
    """How probabilities of one task meet what happened."""

    observed_over_expected: float
    calibration_error: float
    normalised_entropy: float

    @classmethod
    def of(cls, probabilities: NDArray[np.float64], labels: NDArray[np.bool_]) -> Fit:
        return cls(
            observed_over_expected(probabilities, labels),
            expected_calibration_error(probabilities, labels),
            normalised_entropy(probabilities, labels),
        )


class TaskReport(NamedTuple):
    """What calibration did to one task, on requests that it was not fitted on."""

    num_examples: int
    num_positives: int
    before: Fit
    after: Fit


@dataclass(frozen=True, slots=True)
class Calibration:
    """One map per task, kept in a file of its own beside the weights so that it can be refitted alone.

    It is the last step, whatever the network did before: a network with an isotonic layer of its own is calibrated for
    the requests that it was trained on, and this one on requests as service sees them, of members it never saw.
    """

    tasks: tuple[str, ...]
    maps: tuple[Isotonic, ...]
    reports: tuple[TaskReport, ...] = ()
    """One per task, or none where nothing was fitted."""

    @classmethod
    def identity(cls, tasks: tuple[str, ...]) -> Calibration:
        return cls(tasks, tuple(Isotonic(np.zeros(0), np.zeros(0)) for _ in tasks))

    @classmethod
    def fit(
        cls,
        tasks: tuple[str, ...],
        logits_NT: NDArray[np.float32],
        labels_NT: NDArray[np.bool_],
        groups_N: NDArray[np.int64],
    ) -> Calibration:
        """Fit a map per task on n held-out examples, and report what it does by cross-fitting.

        groups_N: whose example it is. For the report the groups are cut in two halves, each calibrated by the map of
        the other; the maps that are kept are of all examples. A single group is reported with its own map.

        Raises ValueError for columns of other lengths.
        """
        if logits_NT.shape != labels_NT.shape or logits_NT.shape != (len(groups_N), len(tasks)):
            raise ValueError(
                f"logits {logits_NT.shape}, labels {labels_NT.shape}, {len(groups_N)} groups; expected columns of "
                f"{len(tasks)} tasks and one length"
            )
        distinct, place_N = np.unique(groups_N, return_inverse=True)
        # The order of the groups is that of their keys, which are hashes.
        half_N = place_N % 2 == 0
        halves = [(half_N, ~half_N), (~half_N, half_N)] if len(distinct) > 1 else [(half_N, half_N)]
        reports = []
        for task in range(len(tasks)):
            logits, labels = logits_NT[:, task], labels_NT[:, task]
            fitted = np.empty(len(logits))
            for inside, outside in halves:
                fitted[outside] = Isotonic.fit(logits[inside], labels[inside])(logits[outside])
            before, after = (_probabilities(of.astype(np.float64)) for of in (logits, fitted))
            reports.append(TaskReport(len(labels), int(labels.sum()), Fit.of(before, labels), Fit.of(after, labels)))
        maps = tuple(Isotonic.fit(logits_NT[:, task], labels_NT[:, task]) for task in range(len(tasks)))
        return cls(tasks, maps, tuple(reports))

    def probabilities(
        self,
        logits_NT: NDArray[np.float32],
        implied: Sequence[tuple[int, int]] = (),
        offsets_NT: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return f32[n, T]: calibrated probabilities, consistent with `implied` (see `make_consistent`).

        offsets_NT: f32[n, T], added to the calibrated logits.
        """
        logits = np.stack([calibrate(logits_NT[:, task]) for task, calibrate in enumerate(self.maps)], axis=1)
        if offsets_NT is not None:
            logits = logits + offsets_NT
        return make_consistent(_probabilities(logits), implied).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the maps as JSON."""
        maps = {
            task: {"raw": fitted.raw.tolist(), "calibrated": fitted.calibrated.tolist()}
            for task, fitted in zip(self.tasks, self.maps, strict=True)
        }
        reports = {
            task: {**report._asdict(), "before": report.before._asdict(), "after": report.after._asdict()}
            for task, report in zip(self.tasks, self.reports, strict=False)
        }
        path.write_text(json.dumps({"format": FORMAT, "maps": maps, "reports": reports}) + "\n")

    @classmethod
    def load(cls, path: Path, tasks: tuple[str, ...]) -> Calibration:
        """Read maps. Raises ValueError for another format, other tasks, or a map that does not increase."""
        document = json.loads(path.read_text())
        if document.get("format") != FORMAT:
            raise ValueError(f"{path}: format is {document.get('format')!r}, expected {FORMAT}")
        if set(document["maps"]) != set(tasks):
            raise ValueError(f"{path}: tasks are {sorted(document['maps'])}, expected {sorted(tasks)}")
        maps = []
        for task in tasks:
            raw, calibrated = (np.array(document["maps"][task][name]) for name in ("raw", "calibrated"))
            if raw.shape != calibrated.shape or (np.diff(raw) <= 0).any() or (np.diff(calibrated) <= 0).any():
                raise ValueError(f"{path}: the map of task {task!r} is not increasing")
            maps.append(Isotonic(raw, calibrated))
        saved = document["reports"]
        reports = tuple(
            TaskReport(**{**saved[task], "before": Fit(**saved[task]["before"]), "after": Fit(**saved[task]["after"])})
            for task in tasks
            if task in saved
        )
        return cls(tasks, tuple(maps), reports)


def _probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT)))
    return probabilities


def _increasing(
    knots: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Smoothing can bring neighbouring blocks level, and equal logits bring knots together: keep the first of those.
    kept = [0]
    for place in range(1, len(knots)):
        if knots[place] > knots[kept[-1]] + 1e-9 and values[place] > values[kept[-1]] + 1e-9:
            kept.append(place)
    return knots[kept], values[kept]

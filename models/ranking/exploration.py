"""Explore or exploit: orders drawn from what the ranker does not know, and how likely each shown place was.

LiRank (arXiv 2402.06859): the last hidden layer is the feature vector of a Bayesian regression per action
("neural-linear", Riquelme et al. 2018), and Thompson sampling orders a page by one draw of its weights. The paper does
not give prior, noise, link, head or sampling unit. Here, for a candidate with hidden features z and calibrated
probability p:

    logit P(action) = logit p + w z,    w ~ N(mean, precision^-1)

so the regression learns what the ranker is still wrong about, and a draw of scale 0 without evidence is the ranker.
Every candidate of a request meets the same draw, so a page is consistent in itself; which draw depends on the seed
alone, so a second page that is asked for with the first one's seed continues it.
"""

# N = examples, n = candidates, X = hidden features, D = projected features and a constant, T = actions, M = draws
# K = places of a page

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from models.ranking.calibration import make_consistent
from models.ranking.posterior import Gaussian

FORMAT = 1
_MAX_FEATURE = 6.0
_MAX_LOGIT = 15.0
_PROJECTION_EXAMPLES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplorationConfig:
    max_features: int = 64
    """A wider hidden layer is projected to so many features."""
    prior_deviation: float = 3.0
    """Standard deviation of w z before any data, for a candidate of typical features."""
    discount: float = 0.99
    """What evidence so far counts for after one more run."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_features <= 128:
            raise ValueError(f"max_features is {self.max_features}; expected 1 to 128")
        if not self.prior_deviation > 0.0:
            raise ValueError(f"prior_deviation is {self.prior_deviation}; expected above 0")
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"discount is {self.discount}; expected above 0, up to 1")


class Evidence(NamedTuple):
    """N labelled candidates."""

    hidden_NX: NDArray[np.float32]
    offsets_NT: NDArray[np.floating]
    """Calibrated logits; of a sample that keeps negatives at a rate, less the log of that rate."""
    labels_NT: NDArray[np.bool_]


class Draws(NamedTuple):
    """What to draw of a request's posterior."""

    seed: int
    """At least 0. The same seed is the same weights, whatever is ranked with them."""
    num_draws: int
    """Draws beside the first, for propensities."""
    scale: float
    """Of the draws' deviations; 0 leaves the means."""


class TrunkMismatch(ValueError):
    """A posterior over the features of one network met another network."""

    def __init__(self, held: str, given: str) -> None:
        super().__init__(
            f"the posterior is over the hidden layer of network {held}, not of {given}; recompute it with `fit`, or "
            f"name {held} as the network that {given} was trained on from"
        )


class Projection(NamedTuple):
    """From the hidden layer to what the regression reads.

    A layer of up to `max_features` is turned onto its principal axes and loses nothing. Of a wider one half the places
    go to the principal axes and half to even draws of directions across all others: a new kind of item differs in
    ways that the data so far hardly varied in, and with principal axes alone it would look known.
    """

    center_X: NDArray[np.float32]
    directions_XP: NDArray[np.float32]

    @classmethod
    def fit(cls, hidden_NX: NDArray[np.float32], max_features: int) -> Projection:
        """Fit on N examples. A feature has unit variance, or less where the layer's variance is below its average."""
        rows_NX = hidden_NX.astype(np.float64)
        width = rows_NX.shape[1]
        center_X = rows_NX.mean(axis=0)
        covariance_XX = np.cov(rows_NX, rowvar=False, ddof=0).reshape(width, width)
        axes_XX = np.linalg.eigh(covariance_XX)[1][:, ::-1]
        if width > max_features:
            num_axes = max_features // 2
            random = np.random.default_rng(0).standard_normal((width - num_axes, max_features - num_axes))
            axes_XX = np.concatenate([axes_XX[:, :num_axes], axes_XX[:, num_axes:] @ np.linalg.qr(random)[0]], axis=1)
        variances_P = np.einsum("xp,xy,yp->p", axes_XX, covariance_XX, axes_XX)
        average = float(np.trace(covariance_XX)) / width
        scaled_XP = axes_XX / np.sqrt(np.maximum(variances_P, max(average, 1e-12)))
        return cls(center_X.astype(np.float32), scaled_XP.astype(np.float32))

    def __call__(self, hidden_NX: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return f32[N, P + 1]; the last is the constant 1. A feature far outside what was fitted on is cut off."""
        features_NP = np.clip((hidden_NX - self.center_X) @ self.directions_XP, -_MAX_FEATURE, _MAX_FEATURE)
        return np.concatenate([features_NP, np.ones((len(hidden_NX), 1), np.float32)], axis=1)


class BayesianHead:
    """One posterior per action over one network's hidden layer. Immutable; safe to use from many threads."""

    def __init__(
        self, trunk: str, config: ExplorationConfig, projection: Projection, posteriors: Sequence[Gaussian]
    ) -> None:
        self.trunk = trunk
        """Version of the network whose hidden layer it reads."""
        self.config = config
        self.projection = projection
        self.posteriors = tuple(posteriors)
        self._means_TD = np.stack([posterior.mean_D for posterior in posteriors]).astype(np.float32)
        self._roots_TDD = np.stack([posterior.root() for posterior in posteriors]).astype(np.float32)

    @classmethod
    def fit(
        cls, trunk: str, num_actions: int, evidence: Iterable[Evidence], config: ExplorationConfig | None = None
    ) -> BayesianHead:
        """Return the posterior from nothing but `evidence`: after a network was trained anew.

        Parts of `evidence` are projected as they come, so hidden features of all of it are never held at once; the
        projection is fitted on the first 20,000 examples.
        """
        config = config or ExplorationConfig()
        parts = iter(evidence)
        first: list[Evidence] = []
        while sum(len(part.hidden_NX) for part in first) < _PROJECTION_EXAMPLES:
            part = next(parts, None)
            if part is None:
                break
            first.append(part)
        if not any(len(part.hidden_NX) for part in first):
            raise ValueError("no evidence; expected at least one example to fit the projection on")
        hidden_NX = np.concatenate([part.hidden_NX for part in first])
        projection = Projection.fit(hidden_NX, config.max_features)
        prior = prior_of(config, projection)
        return cls(trunk, config, projection, _given([prior] * num_actions, projection, chain(first, parts)))

    def update(self, trunk: str, evidence: Iterable[Evidence], *, trained_from: str | None = None) -> BayesianHead:
        """Return the posterior after one more run: evidence so far discounted once, then `evidence` added.

        trunk: version of the network that made the hidden features.  trained_from: the version that it was trained
        on from, where it is not the posterior's own: a few incremental steps turn the features little, and the
        discount outgrows it.  Raises TrunkMismatch for any other network: its features mean something else.
        """
        if self.trunk not in (trunk, trained_from):
            raise TrunkMismatch(self.trunk, trunk)
        prior = prior_of(self.config, self.projection)
        faded = [posterior.forget(self.config.discount, prior) for posterior in self.posteriors]
        return BayesianHead(trunk, self.config, self.projection, _given(faded, self.projection, evidence))

    def deviations(self, hidden_nX: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return f32[n, T]: standard deviation of each candidate's logit."""
        spread_nTD = np.einsum("nd,ted->nte", self.projection(hidden_nX), self._roots_TDD)
        deviations_nT: NDArray[np.float32] = np.sqrt((spread_nTD**2).sum(axis=2))
        return deviations_nT

    def draw(
        self,
        hidden_nX: NDArray[np.float32],
        probabilities_nT: NDArray[np.float32],
        draws: Draws,
        implied: Sequence[tuple[int, int]] = (),
    ) -> NDArray[np.float32]:
        """Return f32[1 + M, n, T]: probabilities under the seed's draw of the weights, then under M others.

        probabilities_nT: calibrated.  implied: see `make_consistent`. The first draw does not depend on M or on the
        candidates, so a page can be continued.
        """
        num_features = self._means_TD.shape[1]
        eps_MTD = np.concatenate(
            [
                np.random.default_rng([draws.seed, stream]).standard_normal((count, len(self.posteriors), num_features))
                for stream, count in enumerate((1, draws.num_draws))
            ]
        ).astype(np.float32)
        weights_MTD = self._means_TD + np.float32(draws.scale) * np.einsum("mtd,tde->mte", eps_MTD, self._roots_TDD)
        moved_TMn = weights_MTD.transpose(1, 0, 2) @ self.projection(hidden_nX).T
        logits_nT = logits_of(probabilities_nT)
        logits_MnT = np.clip(moved_TMn.transpose(1, 2, 0) + logits_nT, -_MAX_LOGIT, _MAX_LOGIT)
        rates_MnT = 1.0 / (1.0 + np.exp(-logits_MnT))
        flat = make_consistent(rates_MnT.reshape(-1, rates_MnT.shape[2]), implied)
        drawn: NDArray[np.float32] = flat.reshape(rates_MnT.shape).astype(np.float32)
        return drawn

    def save(self, path: Path) -> None:
        """Write it as one safetensors file."""
        document = {"format": FORMAT, "trunk": self.trunk, "config": asdict(self.config)}
        arrays: dict[str, NDArray[Any]] = {
            "center": self.projection.center_X,
            "directions": np.ascontiguousarray(self.projection.directions_XP),
            "means": np.stack([posterior.mean_D for posterior in self.posteriors]),
            "precisions": np.stack([posterior.precision_DD for posterior in self.posteriors]),
        }
        save_file(arrays, path, metadata={"exploration": json.dumps(document)})

    @classmethod
    def load(cls, path: Path, trunk: str) -> BayesianHead:
        """Read it for the network of version `trunk`. Raises TrunkMismatch for another network's posterior."""
        document = json.loads(_metadata(path)["exploration"])
        if document["format"] != FORMAT:
            raise ValueError(f"{path}: format is {document['format']!r}, expected {FORMAT}")
        if document["trunk"] != trunk:
            raise TrunkMismatch(document["trunk"], trunk)
        arrays = load_file(path)
        posteriors = [Gaussian(*both) for both in zip(arrays["means"], arrays["precisions"], strict=True)]
        projection = Projection(arrays["center"], arrays["directions"])
        return cls(trunk, ExplorationConfig(**document["config"]), projection, posteriors)


def logits_of(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of probabilities, at most 15 from 0."""
    least = 1.0 / (1.0 + np.exp(_MAX_LOGIT))
    clipped = np.clip(probabilities.astype(np.float64), least, 1.0 - least)
    logits: NDArray[np.float32] = (np.log(clipped) - np.log1p(-clipped)).astype(np.float32)
    return logits


def _given(posteriors: Sequence[Gaussian], projection: Projection, evidence: Iterable[Evidence]) -> list[Gaussian]:
    """Add all of `evidence` at once: Laplace's approximation then has one mode, not one per part."""
    parts = [(projection(part.hidden_NX), part.offsets_NT, part.labels_NT) for part in evidence]
    if not parts:
        return list(posteriors)
    features_ND, offsets_NT, labels_NT = (np.concatenate(column) for column in zip(*parts, strict=True))
    return [
        posterior.given_labels(features_ND, labels_NT[:, task], offsets_NT[:, task])
        for task, posterior in enumerate(posteriors)
    ]


def prior_of(config: ExplorationConfig, projection: Projection) -> Gaussian:
    """Return the weights' distribution before any data."""
    num_features = projection.directions_XP.shape[1] + 1
    return Gaussian.prior(num_features, num_features / config.prior_deviation**2)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        metadata: dict[str, str] = file.metadata() or {}
    if "exploration" not in metadata:
        raise ValueError(f"{path} holds no posterior")
    return metadata

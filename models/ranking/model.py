"""The trained ranker: numpy in, numpy out."""

# n = candidates, S = signals, T = tasks

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.artifacts import load_config, load_weights, save_module, version_of
from models.data.items import ItemBatch
from models.data.schema import FeatureSchema
from models.data.state import UserState
from models.ranking.calibration import Calibration
from models.ranking.exploration import BayesianHead, Draws
from models.ranking.features import FeatureAssembler
from models.ranking.network import (
    Candidates,
    Members,
    NetworkConfig,
    RankingNetwork,
    encode_candidates,
    encode_members,
)
from models.ranking.parity import KnownAnswer
from models.ranking.popularity import PopularityOffsets

KIND = "ranking"
_CALIBRATION = "calibration.json"
_POPULARITY = "popularity.safetensors"
_EXPLORATION = "exploration.safetensors"


class RequestScorer(ABC):
    """Scores all candidates of a request in one forward pass; how the pass is run, a subclass says."""

    def __init__(
        self,
        schema: FeatureSchema,
        config: NetworkConfig,
        calibration: Calibration,
        popularity: PopularityOffsets | None,
        exploration: BayesianHead | None,
        version: str,
        assembler: FeatureAssembler,
    ) -> None:
        self.schema = schema
        self.config = config
        self.calibration = calibration
        self.popularity = popularity
        self.exploration = exploration
        self.version = version
        self.assembler = assembler

    @abstractmethod
    def _run(self, members: Members, candidates: Candidates) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return f32[n, T], logits, and f32[n, Z], the last hidden layer."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The actions predicted, in the order of the columns of a score."""
        return self.schema.tasks

    def score(
        self,
        user: UserState,
        items: ItemBatch,
        signals: NDArray[np.float64],
        retrieval_scores: NDArray[np.float32],
        now_ms: int,
        *,
        history_items: ItemBatch,
    ) -> NDArray[np.float32]:
        """Return f32[n, T]: calibrated probabilities of each task for each candidate.

        signals: f64[n, S] at `now_ms`.  retrieval_scores: f32[n], nan for a candidate no tower scored.
        history_items: features of the user's history keys, in that order; a history longer than the schema's is
        cut to its newest entries, with its items.
        """
        return self.calibration.probabilities(
            self.logits(user, items, signals, retrieval_scores, now_ms, history_items=history_items),
            self.schema.implied_tasks(),
            None if self.popularity is None else self.popularity.offsets(items.keys, now_ms),
        )

    def logits(
        self,
        user: UserState,
        items: ItemBatch,
        signals: NDArray[np.float64],
        retrieval_scores: NDArray[np.float32],
        now_ms: int,
        *,
        history_items: ItemBatch,
    ) -> NDArray[np.float32]:
        """Return f32[n, T]: logits before calibration. Arguments as of `score`."""
        if not len(items):
            return np.zeros((0, len(self.tasks)), dtype=np.float32)
        with torch.inference_mode():
            return self._run(*self._encode(user, items, signals, retrieval_scores, now_ms, history_items))[0]

    def draw(
        self,
        user: UserState,
        items: ItemBatch,
        signals: NDArray[np.float64],
        retrieval_scores: NDArray[np.float32],
        now_ms: int,
        draws: Draws,
        *,
        history_items: ItemBatch,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return f32[n, T], as `score`, and f32[1 + M, n, T]: the same under the posterior's draws.

        Raises ValueError for a model without a posterior.
        """
        if self.exploration is None:
            raise ValueError(f"ranking model {self.version} has no posterior to draw from; train it again")
        if not len(items):
            nothing = np.zeros((1 + draws.num_draws, 0, len(self.tasks)), dtype=np.float32)
            return nothing[0], nothing
        with torch.inference_mode():
            encoded = self._encode(user, items, signals, retrieval_scores, now_ms, history_items)
            logits_nT, hidden_nZ = self._run(*encoded)
        implied = self.schema.implied_tasks()
        offsets = None if self.popularity is None else self.popularity.offsets(items.keys, now_ms)
        probabilities_nT = self.calibration.probabilities(logits_nT, implied, offsets)
        return probabilities_nT, self.exploration.draw(hidden_nZ, probabilities_nT, draws, implied)

    def _encode(
        self,
        user: UserState,
        items: ItemBatch,
        signals: NDArray[np.float64],
        retrieval_scores: NDArray[np.float32],
        now_ms: int,
        history_items: ItemBatch,
    ) -> tuple[Members, Candidates]:
        length = self.schema.history_length
        if len(user.history) > length:
            user = UserState(user.profile, user.history.last(length))
            history_items = history_items.last(length)
        features = self.assembler(user, history_items, items, signals, retrieval_scores, now_ms)
        return (
            encode_members(self.schema, [user], [now_ms], features.member[None]),
            encode_candidates(features.candidates, items, np.arange(len(items)), [len(items)]),
        )


class RankingModel(RequestScorer):
    """The trained ranker, run by torch as it was trained: what any other way to run it must equal."""

    def __init__(
        self,
        schema: FeatureSchema,
        config: NetworkConfig,
        network: RankingNetwork,
        calibration: Calibration,
        popularity: PopularityOffsets | None = None,
        exploration: BayesianHead | None = None,
    ) -> None:
        """popularity: offsets to start from where the config wants them; None: none yet.  exploration: posterior over
        the network's last hidden layer; None: the model cannot `draw`."""
        offsets = (popularity or PopularityOffsets(schema.tasks)) if config.popularity else None
        super().__init__(
            schema, config, calibration, offsets, exploration, version_of(network), assembler_of(schema, network)
        )
        self.network = network.eval()

    def _run(self, members: Members, candidates: Candidates) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        hidden_nZ = self.network.hidden(self.network.encode_member(members), candidates)
        return self.network.read(hidden_nZ, candidates).numpy(), hidden_nZ.numpy()

    def save(self, folder: Path) -> None:
        """Write the model into `folder`."""
        save_module(folder, self.network, kind=KIND, schema=self.schema, config=asdict(self.config))
        self.calibration.save(folder / _CALIBRATION)
        if self.popularity is not None:
            self.popularity.save(folder / _POPULARITY)
        if self.exploration is not None:
            self.exploration.save(folder / _EXPLORATION)
        KnownAnswer.of(self).save(folder)

    @classmethod
    def load(cls, folder: Path, schema: FeatureSchema) -> RankingModel:
        """Read a model. Raises ValueError when it was trained with another schema."""
        config = _network_config(folder / "config.json", load_config(folder, kind=KIND, schema=schema)["config"])
        network = make_network(schema, config, seed=0)
        network.load_state_dict(load_weights(folder))
        calibration = Calibration.load(folder / _CALIBRATION, schema.tasks)
        popularity = PopularityOffsets.load(folder / _POPULARITY, schema.tasks) if config.popularity else None
        posterior = folder / _EXPLORATION
        exploration = BayesianHead.load(posterior, version_of(network)) if posterior.exists() else None
        return cls(schema, config, network, calibration, popularity, exploration)


def make_network(schema: FeatureSchema, config: NetworkConfig, seed: int) -> RankingNetwork:
    """Return an untrained network as wide as the schema's features."""
    ones = np.ones(sum(feature.kind in ("number", "timestamp") for feature in schema.item))
    names = FeatureAssembler(schema, ones, ones)
    return RankingNetwork(schema, config, len(names.candidate_names), len(names.member_names), seed)


def assembler_of(schema: FeatureSchema, network: RankingNetwork) -> FeatureAssembler:
    """Return the assembler that goes with a network's item statistics."""
    return FeatureAssembler(schema, network.centers.numpy().copy(), network.scales.numpy().copy())


def _network_config(path: Path, document: Mapping[str, Any]) -> NetworkConfig:
    """Raises ValueError for a field too many or too few: a network with a guessed part would score at random."""
    expected = {field.name for field in fields(NetworkConfig)}
    for what, names in (("unknown", set(document) - expected), ("missing", expected - set(document))):
        if names:
            raise ValueError(
                f"{path}: config has {what} fields {sorted(names)}; the model was trained by another version of "
                f"this code: train it again"
            )
    groups = tuple(tuple(group) for group in document["groups"])
    return NetworkConfig(**{**document, "hidden": tuple(document["hidden"]), "groups": groups})

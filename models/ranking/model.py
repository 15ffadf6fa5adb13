"""The trained ranker: numpy in, numpy out."""

# n = candidates, S = signals, T = tasks

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
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
from models.ranking.features import FeatureAssembler
from models.ranking.network import Candidates, NetworkConfig, RankingNetwork, encode_members

KIND = "ranking"
_CALIBRATION = "calibration.json"


class RankingModel:
    """Scores all candidates of a request in one forward pass."""

    def __init__(
        self, schema: FeatureSchema, config: NetworkConfig, network: RankingNetwork, calibration: Calibration
    ) -> None:
        self.schema = schema
        self.config = config
        self.network = network.eval()
        self.calibration = calibration
        self.version = version_of(network)
        self.assembler = assembler_of(schema, network)

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
        length = self.schema.history_length
        if len(user.history) > length:
            user = UserState(user.profile, user.history.last(length))
            history_items = history_items.last(length)
        features = self.assembler(user, history_items, items, signals, retrieval_scores, now_ms)
        with torch.inference_mode():
            members = encode_members(self.schema, [user], [now_ms], features.member[None])
            candidates = Candidates(
                torch.from_numpy(features.candidates),
                items,
                torch.arange(len(items)),
                torch.zeros(len(items), dtype=torch.int64),
            )
            logits: NDArray[np.float32] = self.network(members, candidates).numpy()
        return logits

    def save(self, folder: Path) -> None:
        """Write the model into `folder`."""
        save_module(folder, self.network, kind=KIND, schema=self.schema, config=asdict(self.config))
        self.calibration.save(folder / _CALIBRATION)

    @classmethod
    def load(cls, folder: Path, schema: FeatureSchema) -> RankingModel:
        """Read a model. Raises ValueError when it was trained with another schema."""
        config = _network_config(load_config(folder, kind=KIND, schema=schema)["config"])
        network = make_network(schema, config, seed=0)
        network.load_state_dict(load_weights(folder))
        return cls(schema, config, network, Calibration.load(folder / _CALIBRATION, schema.tasks))


def make_network(schema: FeatureSchema, config: NetworkConfig, seed: int) -> RankingNetwork:
    """Return an untrained network as wide as the schema's features."""
    ones = np.ones(sum(feature.kind in ("number", "timestamp") for feature in schema.item))
    names = FeatureAssembler(schema, ones, ones)
    return RankingNetwork(schema, config, len(names.candidate_names), len(names.member_names), seed)


def assembler_of(schema: FeatureSchema, network: RankingNetwork) -> FeatureAssembler:
    """Return the assembler that goes with a network's item statistics."""
    return FeatureAssembler(schema, network.centers.numpy().copy(), network.scales.numpy().copy())


def _network_config(document: Mapping[str, Any]) -> NetworkConfig:
    return NetworkConfig(**{**document, "hidden": tuple(document["hidden"])})

"""The ranker as it is served: tables read by compiled code, the network from its exported file."""

# n = candidates, L = history places, D = embedding dimensions

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kernels.embedding_bag import QuantisedRows, embedding_bag
from models.embeddings import HashEmbedding, QuotientRemainder
from models.ranking.export import FILE, ExportedNetwork, export_network
from models.ranking.model import RankingModel, RequestScorer
from models.ranking.network import Candidates, Members

TableBits = Literal[8, 32]


class ServingTable:
    """A trained table for reading: float32 as it is, or int8 by row at 3/8 of the memory for 16 dimensions."""

    def __init__(self, table: HashEmbedding, bits: TableBits) -> None:
        """Raises ValueError for int8 of a table that is not quotient-remainder."""
        self.dim = table.dim
        self._rows = table.rows
        if bits == 8 and not isinstance(table.rows, QuotientRemainder):
            raise ValueError("int8 tables need a network with ids = 'qr'; expected one, or 32 bits")
        weight = table.weight.detach()
        self._weight = QuantisedRows.of(weight) if bits == 8 else weight

    @property
    def num_bytes(self) -> int:
        """Memory of the table."""
        weight = self._weight
        return weight.num_bytes if isinstance(weight, QuantisedRows) else weight.numel() * weight.element_size()

    def __call__(self, hashes: Tensor) -> Tensor:
        """Return float32[..., D] for hashes of any shape; zeros for 0."""
        return self.bag(hashes.reshape(-1, 1)).reshape(*hashes.shape, self.dim)

    def bag(self, hash_NW: Tensor) -> Tensor:
        """Return float32[n, D]: the mean of each row's hashes other than 0."""
        if isinstance(self._rows, QuotientRemainder):
            return embedding_bag(hash_NW, self._weight, self._rows.quotient_rows, self._rows.remainder_rows)
        assert isinstance(self._weight, Tensor)
        if hash_NW.shape[1] == 0:
            return self._weight.new_zeros(len(hash_NW), self.dim)
        used_NW = (hash_NW != 0).float()
        shares_NW = used_NW / used_NW.sum(dim=1, keepdim=True).clamp(min=1.0)
        rows_NW = self._rows(hash_NW).flatten(1)
        return functional.embedding_bag(rows_NW, self._weight, mode="sum", per_sample_weights=shares_NW)


class ServingModel(RequestScorer):
    """Answers as the model that it is made from, within rounding; with int8 tables, within the rounding of those."""

    def __init__(self, model: RankingModel, exported: ExportedNetwork, table_bits: TableBits = 32) -> None:
        super().__init__(
            model.schema, model.config, model.calibration, model.popularity, model.exploration, model.version,
            model.assembler,
        )  # fmt: skip
        self.table = ServingTable(model.network.table, table_bits)
        self._exported = exported

    @classmethod
    def load(cls, folder: Path, model: RankingModel, table_bits: TableBits = 32) -> ServingModel:
        """Take a model's exported file from its folder. Raises ValueError for one of other weights."""
        return cls(model, ExportedNetwork(folder / FILE, model.version), table_bits)

    def _run(self, members: Members, candidates: Candidates) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        num_candidates = len(candidates.numbers)
        if num_candidates == 1:  # the file was made for two or more
            twice = torch.zeros(2, dtype=torch.int64)
            rows = (tensor[twice] for tensor in (candidates.numbers, candidates.item_keys))
            numbers, keys = rows
            bags = tuple(bag[twice] for bag in candidates.item_bags)
            candidates = candidates._replace(numbers=numbers, item_keys=keys, item_bags=bags)
        logits, hidden = self._exported(self._columns(members, candidates))
        return logits[:num_candidates], hidden[:num_candidates]

    def _columns(self, members: Members, candidates: Candidates) -> dict[str, NDArray[Any]]:
        table, histories = self.table, members.histories
        missing = self.schema.history_length - histories.used.shape[1]
        padded = [functional.pad(column, (0, 0, missing, 0)) for column in (histories.actions, histories.recency)]
        history = functional.pad(table(histories.keys), (0, 0, missing, 0))
        columns = {
            "member": members.numbers,
            "profile_numbers": members.profile_numbers,
            "profile_missing": members.profile_missing,
            "history": history,
            "used": functional.pad(histories.used, (missing, 0)),
            "actions": padded[0],
            "recency": padded[1],
            "candidate": candidates.numbers,
            "item": table(candidates.item_keys),
        }
        columns |= {f"profile_{place}": table.bag(bag) for place, bag in enumerate(members.profile_bags)}
        columns |= {f"item_bag_{place}": table.bag(bag) for place, bag in enumerate(candidates.item_bags)}
        return {name: column.numpy() for name, column in columns.items()}


def export_model(model: RankingModel, folder: Path) -> Path:
    """Write the exported network beside a model's weights; see `models.ranking.export`."""
    return export_network(model.network, model.schema, model.version, folder)

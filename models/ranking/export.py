"""The ranking network as a file that needs neither Python's classes nor a compiler: ONNX, run by ONNX Runtime.

What is exported is everything after the tables, for one member with a history of the schema's length and any number of
candidates. Embeddings go in as numbers, so that tables of any kind (float32, int8) stand before the same file.

Measured on two cores of an AMD EPYC, 500 candidates, one thread, default network without its tables: eager torch
0.71 ms, AOTInductor 0.50, torch.compile 0.56, ONNX Runtime 0.32; the largest network of `tests.bench.ranking_latency`:
4.7, 3.0, 3.1, 2.2. An AOTInductor package also holds machine code for the processor that made it.
"""

# N = candidates, L = history places, D = embedding dimensions, Z = width of the last hidden layer, T = tasks

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.data.attributes import is_numeric
from models.data.schema import FeatureSchema
from models.history import NUM_RECENCY, HistoryBatch
from models.ranking.network import Candidates, Members, RankingNetwork
from models.ranking.parity import TOLERANCE, relative_difference

FILE = "network.onnx"
_VERSION = "shortlist.version"


class Embedded(nn.Module):
    """Stands for a table where what it is asked for is embedded already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, embedded: Tensor) -> Tensor:
        """Return what is given."""
        return embedded

    def bag(self, embedded: Tensor) -> Tensor:
        """Return what is given."""
        return embedded


class DenseNetwork(nn.Module):
    """A ranking network after its tables, for the candidates of one member."""

    def __init__(self, network: RankingNetwork) -> None:
        super().__init__()
        # Readers of the history hold the table too: one substitute for all of them, and no copy of the table.
        self.network = copy.deepcopy(network, {id(network.table): Embedded(network.table.dim)}).eval()

    def forward(
        self,
        member: Tensor,
        profile: Sequence[Tensor],
        profile_numbers: Tensor,
        profile_missing: Tensor,
        history: Tensor,
        used: Tensor,
        actions: Tensor,
        recency: Tensor,
        candidate: Tensor,
        item: Tensor,
        item_bag: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return float32[N, T], logits, and float32[N, Z], the hidden layer under them."""
        members = Members(
            member, tuple(profile), profile_numbers, profile_missing, HistoryBatch(history, used, actions, recency)
        )
        each = torch.arange(candidate.shape[0], device=candidate.device)
        none = torch.zeros_like(each)
        candidates = Candidates(candidate, item, tuple(item_bag), each, none, each[None], each, none)
        hidden_NZ = self.network.hidden(self.network.encode_member(members), candidates)
        return self.network.read(hidden_NZ, candidates), hidden_NZ


def export_network(network: RankingNetwork, schema: FeatureSchema, version: str, folder: Path) -> Path:
    """Write the network's file into `folder` and return its path.  version: of the weights, kept in the file."""
    dense = DenseNetwork(network)
    num_rows = torch.export.Dim("num_candidates", min=2)
    arguments = _example(dense.network, schema)
    rows = {0: num_rows}
    shapes = (None, [None] * len(arguments[1]), *[None] * 6, rows, rows, [rows] * len(arguments[10]))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            dense, arguments, dynamo=True, dynamic_shapes=shapes, output_names=("logits", "hidden"), verbose=False
        )
    assert program is not None
    program.model.metadata_props[_VERSION] = version
    path = folder / FILE
    program.save(path)
    _check(path, dense, schema, version)
    return path


class ExportedNetwork:
    """A network's file, ready to run. Thread-safe."""

    def __init__(self, path: Path, version: str) -> None:
        """Read a file. Raises ValueError where it was made from other weights than those of `version`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait for work would spin on the cores that search and serve.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        found = self._session.get_modelmeta().custom_metadata_map.get(_VERSION)
        if found != version:
            raise ValueError(f"{path} was made from weights of version {found}, expected {version}")
        self._inputs = frozenset(entry.name for entry in self._session.get_inputs())

    def __call__(self, columns: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return f32[N, T], logits, and f32[N, Z]. Columns are named as `DenseNetwork.forward` names its arguments, a
        sequence's with `_0`, `_1`, ... behind; there are two candidates at least."""
        logits, hidden = self._session.run(
            None, {name: column for name, column in columns.items() if name in self._inputs}
        )
        return logits, hidden


def _check(path: Path, dense: DenseNetwork, schema: FeatureSchema, version: str) -> None:
    """A file whose number of candidates came out fixed would be found out by the first request."""
    arguments = _example(dense.network, schema, 5)
    columns: dict[str, NDArray[Any]] = {}
    for name, value in zip(inspect.signature(dense.forward).parameters, arguments, strict=True):
        if isinstance(value, Tensor):
            columns[name] = value.numpy()
        else:
            columns |= {f"{name}_{place}": part.numpy() for place, part in enumerate(value)}
    with torch.no_grad():
        expected = dense(*arguments)[0].numpy()
    difference = relative_difference(ExportedNetwork(path, version)(columns)[0], expected)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{path} differs by {difference:.3g} of the logits' scale from the network; expected at most {TOLERANCE}"
        )


def _example(network: RankingNetwork, schema: FeatureSchema, num_candidates: int = 3) -> tuple[Any, ...]:
    dim, length = network.table.dim, schema.history_length
    num_numbers = sum(is_numeric(feature) for feature in schema.user)
    item_bags = sum(not is_numeric(feature) for feature in schema.item)
    return (
        torch.zeros(1, network.member_norm.num_features - 2 * num_numbers),
        [torch.zeros(1, dim) for _ in range(len(schema.user) - num_numbers)],
        torch.zeros(1, num_numbers),
        torch.zeros(1, num_numbers, dtype=torch.bool),
        torch.zeros(1, length, dim),
        torch.zeros(1, length, dtype=torch.bool),
        torch.zeros(1, length, len(schema.actions)),
        torch.zeros(1, length, NUM_RECENCY),
        torch.zeros(num_candidates, network.candidate_norm.num_features),
        torch.zeros(num_candidates, dim),
        [torch.zeros(num_candidates, dim) for _ in range(item_bags)],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that we do not use and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

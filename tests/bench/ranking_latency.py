"""Time to rank 500 candidates for a member with 100 actions: `python -m tests.bench.ranking_latency [--json FILE]`.

The served model (exported network, compiled tables) against the same weights in eager torch, under torch.compile,
through AOTInductor where there is a C++ compiler, and as one ONNX file with its tables, in one process. A score is
the whole call: features, tables, network, calibration. The network forms are timed on the network's part alone.
`tests.bench.ranking` calls `measure`.
"""

# n = candidates

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from models.data.items import ItemBatch, ItemTable
from models.data.schema import FeatureSchema
from models.data.state import History, UserState
from models.embeddings import HashEmbedding
from models.history import HistoryBatch
from models.ranking.calibration import Calibration
from models.ranking.model import RankingModel, RequestScorer, make_network
from models.ranking.network import Candidates, Members, NetworkConfig, RankingNetwork
from models.ranking.parity import KnownAnswer
from models.ranking.serving import ServingModel, export_model
from services.datasets.dataset import Dataset
from tests.bench.record import Record, percentile

NUM_CANDIDATES, HISTORY, NUM_ITEMS = 500, 100, 2000
NOW_MS = 890_000_000_000
WARM_UP = 20
LARGEST = NetworkConfig(
    history="causal", cross="residual", cross_rank=64, hidden=(256, 128), gate_rank=16, towers="grouped",
    isotonic=True, popularity=True,
)  # fmt: skip


class Request(NamedTuple):
    user: UserState
    items: ItemBatch
    signals: np.ndarray
    scores: np.ndarray
    history_items: ItemBatch

    def score(self, model: RequestScorer) -> np.ndarray:
        return model.score(*self[:4], NOW_MS, history_items=self.history_items)


def measure(record: Record, quick: bool, config: NetworkConfig | None = None, name: str = "rank500") -> None:
    """Add rows and figures of one network; without `config`, of the one that MovieLens' description asks for."""
    repeats = 200 if quick else 1000
    dataset = Dataset.load("configs/movielens.toml")
    schema = dataset.feature_schema()
    model = make_model(schema, config or dataset.ranking.config().network)
    request = make_request(schema)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        export_model(model, Path(folder))
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            served = ServingModel.load(Path(folder), model)
            forms = {"served": partial(request.score, served), "eager": partial(request.score, model)}
            times = alternately(forms, repeats)
            for form, samples in times.items():
                record.add_samples(
                    f"{name}_{form}_{num_threads}_threads", samples, "ms", f"{NUM_CANDIDATES} candidates"
                )
            if num_threads == 1:
                per_second = NUM_CANDIDATES / statistics.median(times["served"]) * 1000.0
                record.figures[f"{name}_items_per_s_per_core"] = per_second
        record.figures[f"{name}_p50_ms"] = statistics.median(times["served"])
        record.figures[f"{name}_p99_ms"] = percentile(sorted(times["served"]), 0.99)
        ratio = statistics.median(times["served"]) / statistics.median(times["eager"])
        record.figures["rank_vs_eager" if name == "rank500" else f"{name}_vs_eager"] = ratio
        _measure_networks(record, model, served, request, repeats, name)
        int8 = ServingModel.load(Path(folder), model, 8)
        samples = alternately({"int8": lambda: request.score(int8)}, repeats)["int8"]
        record.add_samples(f"{name}_int8_tables_2_threads", samples, "ms")
        record.figures[f"{name}_table_fp32_mb"] = served.table.num_bytes / 1e6
        record.figures[f"{name}_table_int8_mb"] = int8.table.num_bytes / 1e6
        record.figures[f"{name}_parity"] = KnownAnswer.load(Path(folder)).difference(served)
    torch.set_num_threads(threads)


def _measure_networks(
    record: Record, model: RankingModel, served: ServingModel, request: Request, repeats: int, name: str
) -> None:
    """The network's part: hashes and features in, logits out."""
    arguments = (request.user, request.items, request.signals, request.scores, NOW_MS, request.history_items)
    with torch.inference_mode():
        members, candidates = model._encode(*arguments)
    forms: dict[str, Callable[[], object]] = {
        "served": lambda: served._run(members, candidates),
        "eager": lambda: model._run(members, candidates),
    }
    whole = WholeNetwork(model.network).eval()
    inputs = whole.inputs(members, candidates)
    with torch.no_grad():
        compiled = torch.compile(whole, dynamic=False)
        forms["torch.compile"] = lambda: compiled(*inputs)
        if shutil.which("g++"):
            package = torch._inductor.aoti_compile_and_package(torch.export.export(whole, inputs))
            loaded = torch._inductor.aoti_load_package(package)
            forms["aotinductor"] = lambda: loaded(*inputs)
        forms["onnx"] = _onnx_form(whole, inputs)
        times = alternately(forms, repeats)
    for form, samples in times.items():
        record.add_samples(f"{name}_network_{form}_2_threads", samples, "ms")
    medians = {form: statistics.median(samples) for form, samples in times.items()}
    record.figures["rank_vs_onnx" if name == "rank500" else f"{name}_vs_onnx"] = medians["served"] / medians["onnx"]


class WholeNetwork(nn.Module):
    """A network with its tables, for one member: what a plain export takes."""

    def __init__(self, network: RankingNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        members: Sequence[Tensor],
        profile: Sequence[Tensor],
        numbers: Tensor,
        keys: Tensor,
        bags: Sequence[Tensor],
    ) -> Tensor:
        each = torch.arange(numbers.shape[0])
        none = torch.zeros_like(each)
        member, profile_numbers, profile_missing, *history = members
        side = Members(member, tuple(profile), profile_numbers, profile_missing, HistoryBatch(*history))
        return self.network(side, Candidates(numbers, keys, tuple(bags), each, none, each[None], each, none))

    @staticmethod
    def inputs(members: Members, candidates: Candidates) -> tuple[Any, ...]:
        tensors = [members.numbers, members.profile_numbers, members.profile_missing, *members.histories]
        plain = [tensor.clone() for tensor in tensors]
        bags = [bag.clone() for bag in candidates.item_bags]
        return (
            plain, [bag.clone() for bag in members.profile_bags], candidates.numbers.clone(),
            candidates.item_keys.clone(), bags,
        )  # fmt: skip


class GatheredTable(nn.Module):
    """A table as ONNX can run it: torch's embedding bags become loops over rows there, ten times as slow."""

    def __init__(self, table: HashEmbedding) -> None:
        super().__init__()
        self.dim, self.rows, self.weight = table.dim, table.rows, nn.Parameter(table.weight.detach())

    def forward(self, hashes: Tensor) -> Tensor:
        return self.weight[self.rows(hashes)].sum(dim=-2)

    def bag(self, hash_NW: Tensor) -> Tensor:
        used_NW = (hash_NW != 0).float()
        share_NW = used_NW / used_NW.sum(dim=1, keepdim=True).clamp(min=1.0)
        return (self(hash_NW) * share_NW[:, :, None]).sum(dim=1)


def _onnx_form(whole: WholeNetwork, inputs: tuple[Any, ...]) -> Callable[[], object]:
    table = whole.network.table
    gathered = copy.deepcopy(whole, {id(table): GatheredTable(table)}).eval()
    program = torch.onnx.export(gathered, inputs, dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning would slow the other forms
    with tempfile.TemporaryDirectory() as folder:
        program.save(f"{folder}/whole.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/whole.onnx", options, providers=["CPUExecutionProvider"])
    flat = torch.utils._pytree.tree_leaves(inputs)
    names = [value.name for value in program.model.graph.inputs]
    feed = {name: tensor.numpy() for name, tensor in zip(names, flat, strict=True)}
    used = {entry.name for entry in session.get_inputs()}
    feed = {name: array for name, array in feed.items() if name in used}
    return lambda: session.run(None, feed)


def alternately(forms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every form, one call each in turn, so that a slow moment of the machine meets all of them."""
    times: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(WARM_UP + repeats):
        for form, run in forms.items():
            started = time.perf_counter()
            run()
            if number >= WARM_UP:
                times[form].append((time.perf_counter() - started) * 1000.0)
    return times


def make_model(schema: FeatureSchema, config: NetworkConfig) -> RankingModel:
    """Weights that are not trained and nowhere the identity: time does not depend on what they are."""
    network = make_network(schema, config, seed=0)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return RankingModel(schema, config, network, Calibration.identity(schema.tasks))


def make_request(schema: FeatureSchema) -> Request:
    """Films with two genres and a title of four words, a member with a full profile and history."""
    random = np.random.default_rng(0)
    keys = random.integers(1, 2**62, NUM_ITEMS)
    table = ItemTable(schema)
    table.upsert(
        keys,
        [
            {
                "title": " ".join(f"w{word}" for word in random.integers(0, 2000, 4)),
                "genre": [f"g{genre}" for genre in random.choice(18, 2, replace=False)],
                "year": int(random.integers(1930, 1998)),
            }
            for _ in keys
        ],
    )
    past = random.choice(keys, HISTORY, replace=False)
    history = History(
        past,
        random.integers(1, 8, HISTORY).astype(np.uint32),
        np.full(HISTORY, 4.0, np.float32),
        np.sort(NOW_MS - random.integers(0, 10**9, HISTORY)),
    )
    profile = {"age": 33, "gender": "M", "occupation": "writer"}
    candidates = table.gather(random.choice(keys, NUM_CANDIDATES, replace=False))
    signals = random.gamma(0.5, 20.0, (NUM_CANDIDATES, len(schema.signals)))
    scores = random.normal(size=NUM_CANDIDATES).astype(np.float32)
    return Request(UserState(profile, history), candidates, signals, scores, table.gather(past))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--largest", action="store_true", help="also the network with every part")
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    arguments = parser.parse_args()
    record = Record("ranking_latency")
    measure(record, arguments.quick)
    if arguments.largest:
        measure(record, arguments.quick, LARGEST, "rank500_largest")
    record.write(arguments.json)
    print(record.table())


if __name__ == "__main__":
    main()

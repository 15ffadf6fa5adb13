"""mSAM against SAM, AdamW and SGD on the ranker: at equal steps, at equal time, and how sharp the minimum is.

`python -m tests.bench.msam DATA_DIR [--seeds 3] [--requests 1500] [--epochs 3] [--json FILE]` on a data folder that
`shortlist demo --prepare` has filled. Requests of some members train, those of others judge. SGD has a rate of its own;
the others share one.
"""

# P = parameters that are not hash tables

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.evaluate import auc, bootstrap_mean, log_loss
from models.ranking.batches import RankingLoss, collate
from models.ranking.calibration import Calibration
from models.ranking.examples import Example, replay_examples
from models.ranking.model import RankingModel, assembler_of, make_network
from models.ranking.training import RankingConfig, fit, logits_of
from models.retrieval.training import train_retrieval
from models.train.optimizers import split_parameters
from services.datasets.dataset import Dataset
from services.demo import DATASET
from services.folder import job_storage
from services.settings import load_settings
from services.training.data import load_training_data

CURVATURE_REQUESTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One optimizer, one seed."""

    name: str
    seed: int
    num_steps: int
    seconds: float
    train_loss: float
    log_loss: float
    """Of the positive task, uncalibrated, on requests that did not train."""
    auc: float
    """Mean over those requests."""
    top_eigenvalue: float
    """Of the Hessian of the training loss in the parameters that are not tables."""


def optimizers(config: RankingConfig, radius: float = 0.05, m: int = 4) -> dict[str, RankingConfig]:
    """Return what is compared, by name; the first is the base of the two after it."""
    return {
        "AdamW": config,
        "SAM": replace(config, sam_radius=radius),
        f"mSAM m={m}": replace(config, sam_radius=radius, micro_batches=m),
        f"AdamW in {m} parts": replace(config, micro_batches=m),
        "SGD": replace(config, optimizer="sgd", learning_rate=0.05),
    }


def compare_optimizers(
    schema: FeatureSchema,
    items: ItemTable,
    training: Sequence[Example],
    judging: Sequence[Example],
    config: RankingConfig,
    seeds: Sequence[int] = (0, 1, 2),
    compared: Mapping[str, RankingConfig] | None = None,
) -> dict[str, list[Row]]:
    """Return rows "at equal steps" and "at equal time": there every optimizer has the time that mSAM took.

    The cosine ends with the steps a run has, so more time is more epochs and not a longer tail.
    """
    compared = compared or optimizers(config)
    at_steps = [
        _row(name, schema, items, training, judging, replace(each, seed=seed))
        for seed in seeds
        for name, each in compared.items()
    ]
    slowest = max(_mean_seconds(at_steps, name) for name in compared)
    at_time = []
    for seed in seeds:
        for name, each in compared.items():
            longer = each.num_epochs * slowest / _mean_seconds(at_steps, name)
            at_time.append(_row(name, schema, items, training, judging, replace(each, seed=seed, num_epochs=longer)))
    return {"at equal steps": at_steps, "at equal time": at_time}


def top_eigenvalue(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], num_iterations: int = 30, seed: int = 0
) -> float:
    """Return the Hessian's eigenvalue of largest magnitude, by power iteration on Hessian-vector products."""
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
    used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None and g.requires_grad]
    weights = [p for p, _ in used]
    flat_P = torch.cat([g.reshape(-1) for _, g in used])
    along_P = torch.randn(len(flat_P), generator=torch.Generator().manual_seed(seed), dtype=flat_P.dtype)
    along_P /= along_P.norm()
    eigenvalue = 0.0
    for _ in range(num_iterations):
        products = torch.autograd.grad(flat_P @ along_P, weights, retain_graph=True, allow_unused=True)
        image_P = torch.cat(
            [torch.zeros(p.numel()) if h is None else h.reshape(-1) for p, h in zip(weights, products, strict=True)]
        )
        eigenvalue = float(along_P @ image_P)
        norm = image_P.norm()
        if float(norm) == 0.0:
            return 0.0
        along_P = image_P / norm
    return eigenvalue


def _row(
    name: str,
    schema: FeatureSchema,
    items: ItemTable,
    training: Sequence[Example],
    judging: Sequence[Example],
    config: RankingConfig,
) -> Row:
    network = make_network(schema, config.network, config.seed)
    last: list[float] = []
    report = fit(
        schema, items, network, training, config,
        lambda step, total, losses: last.append(sum(value for key, value in losses.items() if key != "examples/s")),
    )  # fmt: skip
    model = RankingModel(schema, config.network, network, Calibration.identity(schema.tasks))
    task = schema.tasks.index(schema.positive)
    logits_N = logits_of(model, items, judging)[:, task].astype(np.float64)
    labels_N = np.concatenate([example.labels[:, task] for example in judging])
    cuts = np.cumsum([len(example.keys) for example in judging])[:-1]
    per_request = zip(np.split(logits_N, cuts), np.split(labels_N, cuts), strict=True)
    loss = RankingLoss(schema, config.listwise_weight)
    batch = collate(schema, items, training[:CURVATURE_REQUESTS])
    return Row(
        name=name,
        seed=config.seed,
        num_steps=report.num_steps,
        seconds=report.seconds,
        train_loss=float(np.mean(last[-10:])),
        log_loss=log_loss(1.0 / (1.0 + np.exp(-logits_N)), labels_N),
        auc=float(np.nanmean([auc(scores, labels) for scores, labels in per_request])),
        top_eigenvalue=top_eigenvalue(lambda: loss.total(network, batch), split_parameters(network)[0]),
    )


def _mean_seconds(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row.seconds for row in rows if row.name == name]))


def text(compared: Mapping[str, Sequence[Row]]) -> str:
    """Return a table for each comparison; differences to the first optimizer are paired by seed."""
    lines = []
    for title, rows in compared.items():
        names = list(dict.fromkeys(row.name for row in rows))
        base = np.array([row.auc for row in rows if row.name == names[0]])
        lines.append(
            f"{title:18} {'steps':>6} {'s':>6} {'train':>7} {'logloss':>8} {'auc':>7} {'vs ' + names[0]:>26} top"
        )
        for name in names:
            of = [row for row in rows if row.name == name]
            gain = bootstrap_mean(np.array([row.auc for row in of]) - base)
            mean = {
                key: float(np.mean([getattr(row, key) for row in of]))
                for key in ("num_steps", "seconds", "train_loss", "log_loss", "auc", "top_eigenvalue")
            }
            lines.append(
                f"  {name:16} {mean['num_steps']:6.0f} {mean['seconds']:6.1f} {mean['train_loss']:7.4f} "
                f"{mean['log_loss']:8.4f} {mean['auc']:7.4f} {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] "
                f"{mean['top_eigenvalue']:.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = load_settings(None, {"SHORTLIST_DATA_DIR": str(arguments.data_dir)})
    with job_storage(settings, "bench") as storage:
        data = load_training_data(storage, Dataset.load(DATASET).feature_schema())
    # Three times the default's rate: few steps, and what is compared is to come near its minimum in them.
    config = RankingConfig(num_epochs=arguments.epochs, learning_rate=6e-3, table_learning_rate=0.06)
    examples_config = replace(config.examples, max_requests=arguments.requests, held_out_share=0.3)
    earlier, _ = data.events.split(data.events.quantile_ms(1.0 - examples_config.window_share))
    started = time.perf_counter()
    towers = train_retrieval(data.schema, data.items, data.users, earlier, config.retrieval)
    assembler = assembler_of(data.schema, make_network(data.schema, config.network, 0))
    examples = list(
        replay_examples(data.schema, data.items, data.users, data.events, towers, assembler, examples_config, 0)
    )
    training = [example for example in examples if not example.held_out]
    judging = [example for example in examples if example.held_out]
    print(f"{len(training)} requests train, {len(judging)} judge; made in {time.perf_counter() - started:.0f} s")
    compared = compare_optimizers(data.schema, data.items, training, judging, config, range(arguments.seeds))
    print(text(compared))
    if arguments.json:
        rows = {title: [vars_of(row) for row in rows] for title, rows in compared.items()}
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def vars_of(row: Row) -> dict[str, float | str]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


if __name__ == "__main__":
    main()

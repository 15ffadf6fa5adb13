from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.embeddings import HashEmbedding
from models.train.checkpoint import CheckpointMismatch
from models.train.loop import LoopConfig, run
from models.train.optimizers import RowAdaGrad, step_metric
from models.train.prefetch import batches
from tests.models.checkpoint_worker import CONFIG, KILLED_AT, Model, next_batch, train


def test_row_adagrad_follows_its_formula_and_leaves_other_rows() -> None:
    table = HashEmbedding(3, torch.Generator().manual_seed(0))
    before = table.weight.detach().clone()
    optimizer = RowAdaGrad([table.weight], lr=0.1)
    hashes = torch.tensor([5, 5, -9])
    sums = torch.zeros(len(before))
    expected = before.clone()
    for step in range(3):
        factors = torch.tensor([1.0, 2.0, -1.0 - step])
        optimizer.zero_grad()
        (table(hashes) * factors[:, None] * torch.arange(3.0)).sum().backward()
        optimizer.step()
        gradient = torch.zeros_like(before)
        for hashed, factor in zip(hashes, factors, strict=True):
            gradient[table.rows(hashed)] += factor * torch.arange(3.0)
        touched = gradient.abs().sum(dim=1) > 0
        sums[touched] += gradient[touched].square().mean(dim=1)
        expected[touched] -= 0.1 * gradient[touched] / sums[touched].sqrt()[:, None]
    torch.testing.assert_close(table.weight.detach(), expected)
    assert int((table.weight.detach() != before).any(dim=1).sum()) == 8


def test_the_loop_fits_and_reports_each_step() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    x = torch.randn(64, 2)
    y = x @ torch.tensor([[1.0], [-2.0]]) + 0.5
    reports: list[tuple[int, int, Mapping[str, float]]] = []

    def losses(step: int) -> Mapping[str, Tensor]:
        return {"square": (model(x) - y).square().mean()}

    run(
        model,
        LoopConfig(num_steps=200, learning_rate=0.1, weight_decay=0.0),
        lambda step: step,
        losses,
        lambda done, total, metrics: reports.append((done, total, metrics)),
    )
    assert [(done, total) for done, total, _ in reports] == [(step + 1, 200) for step in range(200)]
    assert reports[-1][2]["square"] < 1e-3
    assert not model.training


def test_a_loss_that_is_not_finite_stops_training() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0 of 5"):
        run(
            model,
            LoopConfig(num_steps=5),
            lambda step: step,
            lambda step: {"bad": model(torch.full((1, 1), torch.nan)).sum()},
        )


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="num_steps is 0"):
        LoopConfig(num_steps=0)
    with pytest.raises(ValueError, match=r"warmup_share is 1\.0"):
        LoopConfig(num_steps=1, warmup_share=1.0)
    with pytest.raises(ValueError, match="optimizer is 'lion'"):
        LoopConfig(num_steps=1, optimizer="lion")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sam_radius is -0\.5"):
        LoopConfig(num_steps=1, sam_radius=-0.5)
    with pytest.raises(ValueError, match="lr is 0"):
        RowAdaGrad([torch.zeros(1, requires_grad=True)], lr=0.0)


def test_a_killed_run_ends_at_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    """kill -9 in the middle, between two checkpoints; the rest is done by another process's worth of state."""
    command = [sys.executable, "-m", "tests.models.checkpoint_worker", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if int(line) == KILLED_AT:
                worker.send_signal(signal.SIGKILL)
                break
    assert worker.wait() == -signal.SIGKILL
    steps: list[int] = []
    resumed = train(tmp_path, lambda step, total, losses: steps.append(step))
    saved = KILLED_AT // CONFIG.checkpoint_steps * CONFIG.checkpoint_steps
    assert steps == list(range(saved + 1, CONFIG.num_steps + 1))
    whole = train(None)
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    # Finished: taken up once more, nothing is left to do.
    steps.clear()
    again = train(tmp_path, lambda step, total, losses: steps.append(step))
    assert not steps and all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_write_cut_short_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    short = replace(CONFIG, num_steps=7)
    expected = train(tmp_path, config=short)
    (tmp_path / ".tmp-1-loop.pt").write_bytes(b"half of a file")
    steps: list[int] = []
    again = train(tmp_path, lambda step, total, losses: steps.append(step), short)
    assert not steps and torch.equal(again["table.weight"], expected["table.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["loop.pt"]


def test_another_runs_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    train(tmp_path, config=replace(CONFIG, num_steps=3))
    with pytest.raises(CheckpointMismatch, match="num_steps is 3, expected 4"):
        train(tmp_path, config=replace(CONFIG, num_steps=4))
    model = Model()
    with pytest.raises(CheckpointMismatch, match="identity is '', expected 'other data'"):
        run(
            model, replace(CONFIG, num_steps=3), next_batch, model.loss, checkpoint=tmp_path, identity="other data"
        )  # fmt: skip


def test_checkpoints_and_prefetch_change_no_bit(tmp_path: Path) -> None:
    plain = replace(CONFIG, num_steps=10, prefetch=0)
    trained = [train(None, config=plain), train(tmp_path, config=replace(plain, prefetch=3, checkpoint_seconds=0.0))]
    for name, tensor in trained[0].items():
        assert torch.equal(trained[1][name], tensor), name


def test_micro_batches_add_up_to_the_batch() -> None:
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    y = x.sum(dim=1, keepdim=True)
    cuts = {1: [12], 3: [6, 4, 2]}

    def fitted(micro_batches: int) -> nn.Linear:
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        parts = torch.arange(12).split(cuts[micro_batches])
        report = run(
            model,
            LoopConfig(num_steps=20, learning_rate=0.05, micro_batches=micro_batches),
            lambda index: parts[index % micro_batches],
            lambda rows: {"square": (model(x[rows]) - y[rows]).square().mean()},
            size=lambda rows: float(len(rows)),
        )
        assert report.num_steps == 20 and report.num_examples == 240 and report.examples_per_s > 0
        return model

    torch.testing.assert_close(fitted(1).weight, fitted(3).weight, atol=1e-5, rtol=1e-5)


def test_bf16_keeps_weights_in_float32_and_still_fits() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    seen: list[torch.dtype] = []
    model = nn.Linear(4, 1)

    def losses(step: int) -> Mapping[str, Tensor]:
        out = model(x)
        seen.append(out.dtype)
        return {"square": (out.float().squeeze(1) - x.sum(dim=1)).square().mean()}

    last: list[float] = []
    run(
        model, LoopConfig(num_steps=150, learning_rate=0.05, weight_decay=0.0, bf16=True), lambda step: step, losses,
        lambda done, total, metrics: last.append(metrics["square"]),
    )  # fmt: skip
    assert seen[0] == torch.bfloat16 and model.weight.dtype == torch.float32 and last[-1] < 1e-2


def test_the_warm_up_may_take_half_the_steps() -> None:
    rates: list[float] = []
    model = nn.Linear(1, 1)
    run(
        model,
        LoopConfig(num_steps=10, learning_rate=1.0, warmup_share=0.5),
        lambda step: step,
        lambda step: {"loss": model(torch.ones(1, 1)).sum()},
        after_step=lambda optimizers: rates.append(optimizers[0].param_groups[0]["lr"]),
    )
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in zip(rates[5:], rates[6:], strict=False))


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_batches_come_in_order_and_an_error_in_its_place(depth: int) -> None:
    assert list(batches(lambda index: index * 10, range(9), depth)) == [index * 10 for index in range(9)]

    def make(index: int) -> int:
        if index == 2:
            raise KeyError("no such batch")
        return index

    taken = []
    with pytest.raises(KeyError, match="no such batch"):
        for batch in batches(make, range(5), depth):
            taken.append(batch)
    assert taken == [0, 1]


def test_a_prefetching_run_that_fails_leaves_no_thread() -> None:
    before = threading.active_count()
    model = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError):
        run(
            model,
            LoopConfig(num_steps=50, prefetch=2),
            lambda step: step,
            lambda step: {"bad": model(torch.full((1, 1), torch.nan)).sum()},
        )
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="depth is -1"):
        next(batches(abs, range(1), -1))


def test_the_metric_is_what_the_optimizer_divides_by() -> None:
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = kind([weight], lr=0.1, weight_decay=0.0)
        weight.grad = torch.tensor([0.5, -3.0])
        optimizer.step()
        moved = torch.tensor([1.0, -2.0]) - weight.detach()
        torch.testing.assert_close(moved, 0.1 * torch.tensor([0.5, -3.0]) / step_metric(optimizer, weight))
    with pytest.raises(ValueError, match="optimizer is a Adagrad"):
        step_metric(torch.optim.Adagrad([nn.Parameter(torch.ones(1))]), torch.ones(1))

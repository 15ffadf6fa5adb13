from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.embeddings import HashEmbedding, split_hashes
from models.train.loop import LoopConfig, run
from models.train.optimizers import RowAdaGrad


def test_row_adagrad_follows_its_formula_and_leaves_other_rows() -> None:
    table = HashEmbedding(3, torch.Generator().manual_seed(0))
    before = table.weight.detach().clone()
    optimizer = RowAdaGrad([table.weight], lr=0.1)
    hashes = np.array([5, 5, -9])
    sums = torch.zeros(len(before))
    expected = before.clone()
    for step in range(3):
        factors = torch.tensor([1.0, 2.0, -1.0 - step])
        optimizer.zero_grad()
        (table(hashes) * factors[:, None] * torch.arange(3.0)).sum().backward()
        optimizer.step()
        gradient = torch.zeros_like(before)
        for hashed, factor in zip(hashes, factors, strict=True):
            gradient[split_hashes(hashed[None])[0]] += factor * torch.arange(3.0)
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
    with pytest.raises(ValueError, match="lr is 0"):
        RowAdaGrad([torch.zeros(1, requires_grad=True)], lr=0.0)

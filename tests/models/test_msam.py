from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from models.embeddings import HashEmbedding
from models.train.loop import LoopConfig, run
from models.train.msam import MSam
from models.train.optimizers import RowAdaGrad
from tests.bench.msam import top_eigenvalue
from tests.models.msam_worker import Tiny, shard, train_alone


def make_data(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return x_ND, torch.sin(x_ND.sum(dim=1))


def make_net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def losses_of(net: nn.Module, x_ND: Tensor, y_N: Tensor, rows: list[Tensor]) -> list[Callable[[], Tensor]]:
    return [lambda part=part: functional.mse_loss(net(x_ND[part]).squeeze(1), y_N[part]) for part in rows]


def flat_grad(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])


def msam_gradient(net: nn.Module, rows: list[Tensor], radius: float, adaptive: bool = False) -> Tensor:
    x_ND, y_N = make_data(max(int(part.max()) for part in rows) + 1)
    sam = MSam(torch.optim.SGD(net.parameters(), lr=0.1), module=net, radius=radius, adaptive=adaptive)
    sam.gradient(losses_of(net, x_ND, y_N, rows), [float(len(part)) for part in rows])
    return flat_grad(net)


def plain_gradient(net: nn.Module, num_rows: int) -> Tensor:
    x_ND, y_N = make_data(num_rows)
    net.zero_grad()
    functional.mse_loss(net(x_ND).squeeze(1), y_N).backward()
    return flat_grad(net)


def test_radius_0_is_the_base_optimizer_bit_for_bit() -> None:
    x_ND, y_N = make_data(16)
    alone, wrapped = make_net(), make_net()
    base = torch.optim.AdamW(alone.parameters(), lr=0.01)
    sam = MSam(torch.optim.AdamW(wrapped.parameters(), lr=0.01), module=wrapped, radius=0.0)
    for _ in range(5):
        base.zero_grad()
        functional.mse_loss(alone(x_ND).squeeze(1), y_N).backward()
        base.step()
        sam.step(losses_of(wrapped, x_ND, y_N, [torch.arange(16)]))
    for ours, theirs in zip(wrapped.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_radius_0_with_shards_is_the_gradient_of_the_batch() -> None:
    """Also when the last shard is smaller: shards are weighted by size."""
    rows = list(torch.arange(14).split(4))
    torch.testing.assert_close(msam_gradient(make_net(), rows, 0.0), plain_gradient(make_net(), 14), atol=1e-15, rtol=0)


def test_one_shard_is_sam() -> None:
    """Against SAM written out: the gradient at w + radius g / ||g||."""
    net = make_net()
    found = msam_gradient(net, [torch.arange(16)], 0.05)
    gradient = plain_gradient(net, 16)
    moved = make_net()
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(moved.parameters()) + 0.05 * gradient / gradient.norm(), moved.parameters()
    )
    torch.testing.assert_close(found, plain_gradient(moved, 16), atol=1e-13, rtol=0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_on_a_quadratic_it_is_the_closed_form(adaptive: bool) -> None:
    hessian = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    weight = nn.Parameter(torch.tensor([1.0, -0.5], dtype=torch.float64))
    module = nn.ParameterList([weight])
    sam = MSam(torch.optim.SGD([weight], lr=0.1), module=module, radius=0.2, adaptive=adaptive)
    sam.gradient([lambda: 0.5 * weight @ hessian @ weight])
    at, gradient = weight.detach(), hessian @ weight.detach()
    scale = at.abs() if adaptive else torch.ones(2, dtype=torch.float64)
    step = 0.2 * scale**2 * gradient / (scale * gradient).norm()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, hessian @ (at + step))


def test_the_order_of_samples_matters_only_between_one_and_all_shards() -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for num_shards, is_same in ((1, True), (12, True), (3, False)):
        straight = msam_gradient(make_net(), list(torch.arange(12).chunk(num_shards)), 0.5)
        shuffled = msam_gradient(make_net(), list(order.chunk(num_shards)), 0.5)
        assert torch.allclose(straight, shuffled, atol=1e-12) == is_same


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_m_sharpness_does_not_fall_with_more_shards(seed: int) -> None:
    """On nested splits, to first order: the mean over shards of the shards' gradient norms (Jensen)."""
    net, (x_ND, y_N) = make_net(seed), make_data(64, seed)
    radius, sharpness = 1e-3, []
    for num_shards in (1, 2, 4, 8, 16, 64):
        rises = []
        for loss in losses_of(net, x_ND, y_N, list(torch.arange(64).chunk(num_shards))):
            before = loss()
            gradients = torch.autograd.grad(before, list(net.parameters()))
            norm = torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(())))
            with torch.no_grad():
                for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                    parameter += radius * gradient / norm
                rises.append(float(loss() - before))
                for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                    parameter -= radius * gradient / norm
        sharpness.append(sum(rises) / len(rises))
    assert all(more > less - 1e-6 for less, more in zip(sharpness, sharpness[1:], strict=False))
    assert sharpness[-1] > 1.2 * sharpness[0]


class Noisy(nn.Module):
    """Dropout, batch norm and a table: everything that a second pass could disturb."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = HashEmbedding(4, torch.Generator().manual_seed(0))
            self.norm = nn.BatchNorm1d(4)
            self.drop = nn.Dropout(0.5)
            self.out = nn.Linear(4, 1)
        self.masks: list[Tensor] = []

    def loss(self, hashes: Tensor) -> Tensor:
        kept = self.drop(torch.ones(len(hashes), 4))
        self.masks.append(kept.detach())
        return self.out(self.norm(self.table(hashes)) * kept).square().mean()


def noisy_step(radius: float, move_tables: bool = False) -> tuple[Noisy, MSam, Tensor]:
    model = Noisy()
    dense = [*model.norm.parameters(), *model.out.parameters()]
    sam = MSam(
        torch.optim.AdamW(dense), RowAdaGrad([model.table.weight], lr=0.1),
        module=model, radius=radius, tables=[model.table.weight], move_tables=move_tables,
    )  # fmt: skip
    torch.manual_seed(3)
    sam.gradient([lambda part=part: model.loss(part) for part in torch.arange(1, 13).split(6)])
    return model, sam, torch.get_rng_state()


@pytest.mark.parametrize("move_tables", [False, True])
def test_buffers_generators_and_weights_are_as_after_one_pass(move_tables: bool) -> None:
    plain, _, after_plain = noisy_step(0.0)
    sharp, _, after_sharp = noisy_step(0.3, move_tables)
    assert torch.equal(after_plain, after_sharp)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, sharp.state_dict()[name]), name  # batch norm's statistics, and every weight
    assert len(sharp.masks) == 4
    assert torch.equal(sharp.masks[0], sharp.masks[1]) and torch.equal(sharp.masks[2], sharp.masks[3])
    assert not torch.equal(sharp.masks[0], sharp.masks[2])
    assert not torch.equal(plain.out.weight.grad, sharp.out.weight.grad)  # type: ignore[arg-type]


def test_sparse_gradients_stay_sparse_and_tables_move_only_when_told() -> None:
    held, _, _ = noisy_step(0.3)
    moved, _, _ = noisy_step(0.3, move_tables=True)
    gradients = [model.table.weight.grad for model in (held, moved)]
    assert all(gradient is not None and gradient.is_sparse for gradient in gradients)
    assert not torch.equal(held.out.weight.grad, moved.out.weight.grad)  # type: ignore[arg-type]
    assert torch.equal(held.table.weight, moved.table.weight)


def test_tables_move_by_the_formula() -> None:
    """One row of a linear loss: the norm and the step are those of its gradient alone."""
    table = HashEmbedding(2, torch.Generator().manual_seed(0))
    hashes = torch.tensor([7])
    seen: list[Tensor] = []

    def loss() -> Tensor:
        value = table(hashes)
        seen.append(value.detach())
        return (value * torch.tensor([3.0, 4.0])).sum()

    sam = MSam(RowAdaGrad([table.weight], lr=0.1), module=table, radius=0.5, tables=[table.weight], move_tables=True)
    sam.gradient([loss])
    # Four rows, each with gradient (3, 4): norm 10, each row moves by 0.5 (3, 4) / 10.
    torch.testing.assert_close(seen[1] - seen[0], 4 * 0.5 * torch.tensor([[0.3, 0.4]]))


def test_two_processes_are_one_process_with_two_micro_batches(tmp_path: Path) -> None:
    """Each process its own ascent, gradients summed after it; unequal shards, and a table row only one of them has."""
    workers = [
        subprocess.Popen([sys.executable, "-m", "tests.models.msam_worker", str(tmp_path), str(rank)])
        for rank in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = train_alone()
    for name, tensor in expected.items():
        assert torch.equal(found[0][name], found[1][name]), name
        if name.startswith(("norm.running", "norm.num")):
            continue  # one process moves its statistics twice a step, two processes once each
        torch.testing.assert_close(found[0][name], tensor, atol=1e-6, rtol=1e-5)
    assert not torch.equal(expected["table.weight"], Tiny().table.weight)
    assert len(shard(0)[0]) != len(shard(1)[0])


def test_the_loop_takes_it_by_a_line_of_its_config() -> None:
    def train(**changes: float) -> Tensor:
        model = make_net()
        x_ND, y_N = make_data(16)
        run(
            model,
            LoopConfig(num_steps=4, micro_batches=2, **changes),  # type: ignore[arg-type]
            lambda index: torch.arange(16).chunk(2)[index % 2],
            lambda rows: {"square": functional.mse_loss(model(x_ND[rows]).squeeze(1), y_N[rows])},
        )
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(train(), train(sam_radius=0.0))
    assert not torch.equal(train(), train(sam_radius=0.1))


def test_what_cannot_be_is_refused() -> None:
    net = make_net()
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"radius is -0\.1"):
        MSam(base, module=net, radius=-0.1)
    with pytest.raises(ValueError, match="at least one optimizer"):
        MSam(module=net)
    sam = MSam(base, module=net)
    with pytest.raises(ValueError, match="0 losses"):
        sam.gradient([])
    with pytest.raises(ValueError, match="sizes above 0"):
        sam.gradient([lambda: torch.zeros(())], [0.0])
    with pytest.raises(ValueError, match="no parameter that mSAM moves"):
        sam.gradient([lambda: torch.zeros((), requires_grad=True) * 2.0])


def test_the_benchmark_finds_a_known_top_eigenvalue() -> None:
    hessian = torch.diag(torch.tensor([1.0, -7.0, 3.0]))
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    # Of largest magnitude; a term that does not bend, and a parameter the loss does not read, change nothing.
    other = nn.Parameter(torch.ones(2))
    found = top_eigenvalue(lambda: 0.5 * weight @ hessian @ weight + weight.sum(), [weight, other], num_iterations=60)
    assert found == pytest.approx(-7.0, rel=1e-3)

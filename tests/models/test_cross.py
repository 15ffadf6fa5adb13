from __future__ import annotations

import pytest
import torch

from models.ranking.cross import LowRankCross, ResidualCross


def drawn(
    kind: type[LowRankCross] | type[ResidualCross], width: int = 7, rank: int = 3
) -> LowRankCross | ResidualCross:
    torch.manual_seed(0)
    layer = kind(width, rank).double()
    for name, parameter in layer.named_parameters():
        if "temperature" not in name:
            torch.nn.init.normal_(parameter)
    return layer


def test_a_low_rank_cross_layer_is_the_dense_formula() -> None:
    layer = drawn(LowRankCross)
    assert isinstance(layer, LowRankCross)
    x0, x = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    dense = layer.up.weight @ layer.down.weight
    torch.testing.assert_close(layer(x0, x), x0 * (x @ dense.T + layer.up.bias) + x)
    assert torch.linalg.matrix_rank(dense) == 3


@pytest.mark.parametrize("kind", [LowRankCross, ResidualCross])
def test_a_cross_layer_starts_as_the_identity(kind: type[LowRankCross] | type[ResidualCross]) -> None:
    x0, x = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(kind(7, 3)(x0, x), x)


def test_a_residual_layer_without_gamma_is_its_low_rank_layer() -> None:
    layer = drawn(ResidualCross)
    assert isinstance(layer, ResidualCross)
    torch.nn.init.zeros_(layer.gamma)
    x0, x = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    assert torch.equal(layer(x0, x), layer.plain(x0, x))


def test_a_residual_layer_is_its_formula_row_by_row() -> None:
    layer = drawn(ResidualCross)
    assert isinstance(layer, ResidualCross)
    x0, x = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    for row, crossed in enumerate(layer(x0, x)):
        value, query, key = (part.weight @ x[row] for part in (layer.value, layer.query, layer.key))
        scores = torch.softmax(torch.outer(query, key) / layer.temperature(), dim=1)
        branch = x0[row] * (layer.up.weight @ (scores @ value + value) + layer.up.bias)
        torch.testing.assert_close(crossed, layer.plain(x0[row], x[row]) + layer.gamma * branch)


def test_scores_of_one_on_the_diagonal_and_no_skip_are_a_plain_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = drawn(ResidualCross)
    assert isinstance(layer, ResidualCross)
    torch.nn.init.ones_(layer.gamma)
    x0, x = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    # A = I reads v, of which the skip's v makes 2 v: half of the value projection is then the layer without a skip.
    monkeypatch.setattr(ResidualCross, "attend", lambda self, x_ND: self.value(x_ND))
    with torch.no_grad():
        layer.value.weight *= 0.5
    same = LowRankCross(7, 3).double()
    same.down.weight, same.up = torch.nn.Parameter(2.0 * layer.value.weight), layer.up
    torch.testing.assert_close(layer(x0, x) - layer.plain(x0, x), same(x0, torch.clone(x)) - x)


def test_a_high_temperature_is_mean_pooling() -> None:
    layer = drawn(ResidualCross)
    assert isinstance(layer, ResidualCross)
    x = 1e-3 * torch.randn(5, 7).double()
    torch.nn.init.constant_(layer.raw_temperature, 1e4)
    assert layer.temperature().item() == 10.0
    torch.testing.assert_close(
        layer.attend(x), layer.value(x).mean(dim=1, keepdim=True).expand(5, 3), rtol=1e-3, atol=1e-6
    )


def test_every_part_of_a_residual_layer_learns() -> None:
    torch.manual_seed(0)
    layer = ResidualCross(7, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.randn(9, 7), torch.randn(9, 7)) - 1.0).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in layer.named_parameters())

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from models.ranking.isotonic import HIGHEST, LOWEST, NUM_BUCKETS, STEP, IsotonicLayer


def drawn(seed: int, scale: float = 3.0, num_tasks: int = 2, num_contexts: int = 3) -> IsotonicLayer:
    torch.manual_seed(seed)
    layer = IsotonicLayer(num_tasks, num_contexts)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return layer


def test_it_starts_as_the_identity() -> None:
    logits = torch.linspace(-40.0, 40.0, 2001)[:, None].repeat(1, 2)
    for context in range(3):
        assert torch.equal(IsotonicLayer(2, 3)(logits, torch.full((2001,), context)), logits)


@given(st.integers(0, 1000), st.sampled_from([0.1, 3.0, 30.0]))
def test_it_increases_in_every_context(seed: int, scale: float) -> None:
    layer = drawn(seed, scale).double()
    logits = torch.linspace(-30.0, 20.0, 3001, dtype=torch.float64)[:, None].repeat(1, 2)
    for context in range(3):
        assert bool((torch.diff(layer(logits, torch.full((3001,), context)), dim=0) >= -1e-9).all())  # but for rounding


def test_it_is_the_sum_of_bucket_slopes() -> None:
    layer = drawn(0, scale=1.0).double()
    for logit, context in ((-16.99, 0), (-3.312, 1), (0.0371, 2), (7.99, 0)):
        slopes = layer.slope[1] + (layer.context_slope[context - 1, 1] if context else 0.0)
        slopes = functional.softplus(slopes + torch.tensor(torch.e - 1.0, dtype=torch.float64).log())
        bucket = int((logit - LOWEST) / STEP)
        expected = LOWEST + STEP * slopes[:bucket].sum() + (logit - LOWEST - STEP * bucket) * slopes[bucket]
        expected = expected + layer.bias[1] + (layer.context_bias[context - 1, 1] if context else 0.0)
        found = layer(torch.tensor([[0.0, logit]], dtype=torch.float64), torch.tensor([context]))[0, 1]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_reference_context_takes_the_position_out() -> None:
    """Clicks fall with the place; trained with places as contexts, the reference alone says what an item is worth."""
    torch.manual_seed(0)
    worth, place = torch.randn(20_000, 1), torch.randint(0, 3, (20_000,))
    clicked = (torch.rand(20_000, 1) < torch.sigmoid(worth - 1.5 * place[:, None])).float()
    layer = IsotonicLayer(1, 3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(layer(worth, place), clicked)
        (loss + 1e-3 * layer.roughness()).backward()
        optimizer.step()
    with torch.no_grad():
        served = layer(worth, torch.zeros_like(place)).sigmoid().mean()
        assert float(served) == pytest.approx(float(worth.sigmoid().mean()), abs=0.02)
        shown = layer(worth, place).sigmoid()
        for context in range(3):
            rows = place == context
            assert float(shown[rows].mean()) == pytest.approx(float(clicked[rows].mean()), abs=0.02)
    assert float(served) > float(clicked.mean()) + 0.1


def test_no_bucket_dies() -> None:
    layer = IsotonicLayer(1)
    torch.nn.init.constant_(layer.slope, -20.0)
    layer(torch.tensor([[0.0]]), torch.tensor([0])).sum().backward()
    assert layer.slope.grad is not None
    below = round((0.0 - LOWEST) / STEP)
    assert bool((layer.slope.grad[0, : below - 1] > 0.0).all())


def test_roughness_is_0_for_straight_lines_only() -> None:
    assert IsotonicLayer(2, 3).roughness().item() == 0.0
    assert drawn(0).roughness().item() > 1.0
    assert pytest.approx(HIGHEST - LOWEST) == NUM_BUCKETS * STEP

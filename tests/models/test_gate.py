from __future__ import annotations

import torch
from torch import nn

from models.ranking.gate import LowRankGate, gated_mlp


def test_a_gate_starts_as_the_identity_and_is_its_formula() -> None:
    torch.manual_seed(0)
    gate, hidden = LowRankGate(6, 2), torch.randn(5, 6)
    torch.testing.assert_close(gate(hidden), hidden)
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    full = gate.up.weight @ gate.down.weight
    torch.testing.assert_close(gate(hidden), hidden * 2.0 * torch.sigmoid(hidden @ full.T + gate.up.bias))


def test_an_mlp_is_as_wide_as_asked_and_gated_only_if_asked() -> None:
    x = torch.randn(5, 4)
    gated, plain = gated_mlp(4, (8, 3), 0.0, gate_rank=2), gated_mlp(4, (8, 3), 0.0, gate_rank=0)
    assert gated(x).shape == plain(x).shape == (5, 3)
    assert [sum(isinstance(layer, LowRankGate) for layer in mlp) for mlp in (gated, plain)] == [2, 0]
    plain.load_state_dict(
        {
            ours: gated.state_dict()[theirs]
            for ours, theirs in zip(plain.state_dict(), ("0.weight", "0.bias", "4.weight", "4.bias"), strict=True)
        }
    )
    torch.testing.assert_close(gated(x), plain(x))
    assert torch.equal(gated_mlp(4, (), 0.0, gate_rank=2)(x), x)

"""Adapters, and decoders cut short."""

from __future__ import annotations

import pytest
import torch

from models.decoder.attention import PackedCausal
from models.decoder.lora import LoraConfig, LoraLinear, add_lora, merge_lora
from models.decoder.network import Decoder
from models.decoder.shorten import shorten
from tests.models.decoder.tiny import tiny_decoder


def hidden(decoder: Decoder) -> torch.Tensor:
    attention = PackedCausal([7, 5])
    tokens = torch.arange(12) * 29 % 400
    with torch.no_grad():
        return decoder(tokens, attention.positions(), attention)


def stir(decoder: Decoder) -> None:
    """Give the adapters something to add."""
    generator = torch.Generator().manual_seed(1)
    for module in decoder.modules():
        if isinstance(module, LoraLinear):
            with torch.no_grad():
                module.up_OR.normal_(0.0, 0.1, generator=generator)


def test_a_merged_decoder_answers_as_the_adapted_one_and_has_its_names_back() -> None:
    decoder = tiny_decoder()
    names, before = list(decoder.state_dict()), hidden(decoder)
    add_lora(decoder, LoraConfig(rank=4))
    assert torch.equal(hidden(decoder), before)  # adapters begin at nothing
    stir(decoder)
    adapted = hidden(decoder)
    assert not torch.allclose(adapted, before, atol=1e-2)
    assert merge_lora(decoder) == 14
    assert list(decoder.state_dict()) == names
    assert torch.allclose(hidden(decoder), adapted, atol=2e-5)
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_only_adapters_of_the_linears_asked_for_are_trained() -> None:
    decoder = tiny_decoder()
    add_lora(decoder, LoraConfig(rank=2, linears=("q_proj", "v_proj")))
    trained = [name for name, parameter in decoder.named_parameters() if parameter.requires_grad]
    assert len(trained) == 8
    assert all(name.endswith(("down_RI", "up_OR")) and ("q_proj" in name or "v_proj" in name) for name in trained)


def test_what_cannot_be_adapted_is_named() -> None:
    with pytest.raises(ValueError, match="expected some of"):
        LoraConfig(linears=("head",))
    with pytest.raises(ValueError, match="has no linear map"):
        add_lora(torch.nn.LayerNorm(3), LoraConfig())
    decoder = tiny_decoder()
    add_lora(decoder, LoraConfig())
    with pytest.raises(ValueError, match="merge first"):
        add_lora(decoder, LoraConfig())


def test_a_short_decoder_is_the_first_layers_of_the_long_one() -> None:
    decoder = tiny_decoder(num_hidden_layers=3)
    short = shorten(decoder, 2)
    assert short.config.num_hidden_layers == 2
    assert torch.equal(short.model.layers[1].mlp.up_proj.weight, decoder.model.layers[1].mlp.up_proj.weight)
    # Without its last layer's part in the stream the long one is the short one.
    with torch.no_grad():
        decoder.model.layers[2].self_attn.o_proj.weight.zero_()
        decoder.model.layers[2].mlp.down_proj.weight.zero_()
    assert torch.equal(hidden(short), hidden(decoder))
    with torch.no_grad():
        short.model.embed_tokens.weight.zero_()
    assert decoder.model.embed_tokens.weight.any()
    with pytest.raises(ValueError, match="num_layers is 4; expected 1 to 3"):
        shorten(decoder, 4)

"""The decoder against the plain definitions of its parts, written out in loops of float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoder.attention import PackedCausal
from models.decoder.network import RMSNorm, rotate, rotations
from tests.models.decoder.tiny import tiny_decoder

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def tokens_of(length, seed=0):
    return torch.randint(0, 400, (length,), generator=torch.Generator().manual_seed(seed))


def logits_of(decoder, tokens_T, lengths):
    attention = PackedCausal(lengths)
    with torch.no_grad():
        return decoder.logits(decoder(tokens_T, attention.positions(), attention)).numpy()


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(0, 1000))
def test_packed_sequences_are_each_as_if_alone(lengths, seed):
    decoder, tokens_T = tiny_decoder(), tokens_of(sum(lengths), seed)
    packed = logits_of(decoder, tokens_T, lengths)
    alone = [logits_of(decoder, part, [len(part)]) for part in torch.split(tokens_T, lengths)]
    np.testing.assert_allclose(packed, np.concatenate(alone), atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(LENGTHS)
def test_positions_count_from_nought_in_every_sequence(lengths):
    expected = [place for length in lengths for place in range(length)]
    assert PackedCausal(lengths).positions().tolist() == expected


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_an_empty_sequence_is_refused(lengths):
    with pytest.raises(ValueError, match="expected sequences of at least one token"):
        PackedCausal(lengths)


def test_a_token_sees_nothing_behind_it_and_nothing_of_its_neighbours():
    decoder, tokens_T = tiny_decoder(), tokens_of(20)
    before = logits_of(decoder, tokens_T, [8, 12])
    changed = tokens_T.clone()
    changed[14] = (changed[14] + 1) % 400
    after = logits_of(decoder, changed, [8, 12])
    np.testing.assert_array_equal(after[:14], before[:14])
    assert (np.abs(after[14:] - before[14:]).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_grouped_heads_are_the_loop_over_heads(heads, groups):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(9, heads, 8, generator=generator)
    key, value = torch.randn(2, 9, groups, 8, generator=generator).unbind()
    mixed = PackedCausal([4, 5])(0, query, key, value).numpy()
    for first, last in ((0, 4), (4, 9)):
        for head in range(heads):
            group = head // (heads // groups)
            for place in range(first, last):
                seen = slice(first, place + 1)
                expected = mean_seen(query[place, head], key[seen, group], value[seen, group])
                np.testing.assert_allclose(mixed[place, head], expected, atol=1e-5)


def mean_seen(query_K, keys_SK, values_SK):
    query, keys, values = (x.double().numpy() for x in (query_K, keys_SK, values_SK))
    weights = np.exp(keys @ query / np.sqrt(len(query)))
    return (weights / weights.sum()) @ values


def test_rms_norm_is_its_definition():
    norm = RMSNorm(16, eps=1e-5)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2)) * 30
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 16))
        found = norm(x).numpy()
    for row, expected in zip(found, x.double().numpy(), strict=True):
        scale = np.sqrt((expected**2).mean() + 1e-5)
        np.testing.assert_allclose(row, expected / scale * norm.weight.detach().numpy(), rtol=1e-5)


def test_rotation_turns_each_pair_by_its_position():
    positions = torch.tensor([0, 1, 7, 4000])
    x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(3))
    turned = rotate(x, rotations(positions, 8, theta=10_000.0)).numpy()
    for row, place in enumerate(positions.tolist()):
        for pair in range(4):
            spin = np.exp(1j * place * 10_000.0 ** (-2 * pair / 8))
            for head in range(3):
                z = complex(x[row, head, pair], x[row, head, pair + 4]) * spin
                assert turned[row, head, pair] == pytest.approx(z.real, abs=2e-4)
                assert turned[row, head, pair + 4] == pytest.approx(z.imag, abs=2e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_whole_network_is_its_definition(tied, groups):
    decoder = tiny_decoder(seed=5, tie_word_embeddings=tied, num_key_value_heads=groups, rope_theta=1000.0)
    tokens_T = tokens_of(11)
    np.testing.assert_allclose(logits_of(decoder, tokens_T, [11]), defined(decoder, tokens_T.numpy()), atol=5e-5)


def defined(decoder, tokens):
    """Logits of one sequence in float64: Llama as it is described, token by token and head by head."""
    config = decoder.config
    weights = {name: tensor.double().numpy() for name, tensor in decoder.state_dict().items()}

    def norm(name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weights[f"{name}.weight"]

    def heads(name, x):
        return (x @ weights[f"{name}.weight"].T).reshape(len(x), -1, config.head_dim)

    half = config.head_dim // 2
    spin = np.exp(1j * np.outer(np.arange(len(tokens)), config.rope_theta ** (-np.arange(half) / half)))[:, None]

    def turn(x):
        z = (x[..., :half] + 1j * x[..., half:]) * spin
        return np.concatenate([z.real, z.imag], axis=-1)

    x = weights["model.embed_tokens.weight"][tokens]
    shared = config.num_attention_heads // config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        y = norm(f"{name}.input_layernorm", x)
        query, key, value = (heads(f"{name}.self_attn.{part}_proj", y) for part in "qkv")
        query, key = turn(query), turn(key)
        mixed = np.zeros_like(query)
        for place in range(len(tokens)):
            for head in range(config.num_attention_heads):
                keys, values = key[: place + 1, head // shared], value[: place + 1, head // shared]
                shares = np.exp(keys @ query[place, head] / np.sqrt(config.head_dim))
                mixed[place, head] = shares / shares.sum() @ values
        x = x + mixed.reshape(len(x), -1) @ weights[f"{name}.self_attn.o_proj.weight"].T
        y = norm(f"{name}.post_attention_layernorm", x)
        gate, up = (y @ weights[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{name}.mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm("model.norm", x) @ head.T


def test_logits_of_some_tokens_are_those_of_all():
    decoder = tiny_decoder(tie_word_embeddings=False).bfloat16()
    hidden = torch.randn(3, 32, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(4))
    every, some = decoder.logits(hidden), decoder.logits(hidden, torch.tensor([7, 390]))
    assert every.dtype == some.dtype == torch.float32 and every.shape == (3, 400)
    torch.testing.assert_close(some, every[:, [7, 390]], rtol=1e-6, atol=1e-6)

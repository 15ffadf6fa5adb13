"""The decoder: Llama's network over a flat row of tokens.

Tokens of many sequences lie one behind the other, without padding; which of them see one another is up to the
attention that a pass is given. So one network trains on packed sequences, reads a prompt, and scores candidates that
share a prefix. Modules are named as in Hugging Face's Llama: a state dict of one is a state dict of the other.

Touvron et al. 2023 (arXiv 2302.13971), with grouped queries (Ainslie et al. 2023).
"""

# T = tokens, D = hidden_size, H = attention heads, G = key-value heads, K = head_dim, V = vocab_size

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.decoder.config import DecoderConfig


class Attention(Protocol):
    """Which tokens see which: called once for every layer of a pass, in order."""

    def __call__(self, layer: int, query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor) -> Tensor:
        """Return [T, H, K]: for every query the softmax mean of the values it may see, scores scaled by K^-1/2.

        Queries and keys have their positions in them. Head h reads key-value head h // (H / G).
        """
        ...


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32. Zhang and Sennrich 2019."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        scaled: Tensor = self.weight * normed.to(x.dtype)
        return scaled


class SelfAttention(nn.Module):
    """Queries, keys and values of one layer, rotated by their positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size, head = config.hidden_size, config.head_dim
        self.head_dim = head
        self.q_proj = nn.Linear(size, config.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(size, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(size, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head, size, bias=False)

    def forward(self, x_TD: Tensor, rotation_2TK: Tensor, layer: int, attention: Attention) -> Tensor:
        query = rotate(self.q_proj(x_TD).unflatten(-1, (-1, self.head_dim)), rotation_2TK)
        key = rotate(self.k_proj(x_TD).unflatten(-1, (-1, self.head_dim)), rotation_2TK)
        value = self.v_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        mixed: Tensor = self.o_proj(attention(layer, query, key, value).flatten(-2))
        return mixed


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Shazeer 2020."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))
        return down


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_TD: Tensor, rotation_2TK: Tensor, layer: int, attention: Attention) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rotation_2TK, layer, attention)
        after_TD: Tensor = x_TD + self.mlp(self.post_attention_layernorm(x_TD))
        return after_TD


class Backbone(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A decoder and its head, which is the embedding table itself where the config ties them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    @property
    def head_VD(self) -> Tensor:
        """The vocabulary matrix: a token's logit is its row's product with a hidden state."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, tokens_T: Tensor, positions_T: Tensor, attention: Attention) -> Tensor:
        """Return [T, D]: hidden states after the last norm, in the weights' dtype.

        tokens_T: int64, ids below V.  positions_T: int64, each token's place in its own sequence.
        """
        x_TD = self.model.embed_tokens(tokens_T)
        rotation_2TK = rotations(positions_T, self.config.head_dim, self.config.rope_theta).to(x_TD.dtype)
        for place, layer in enumerate(self.model.layers):
            x_TD = layer(x_TD, rotation_2TK, place, attention)
        hidden_TD: Tensor = self.model.norm(x_TD)
        return hidden_TD

    def logits(self, hidden_MD: Tensor, tokens_L: Tensor | None = None) -> Tensor:
        """Return float32[M, L]: logits of the tokens asked for, of all V with None."""
        head = self.head_VD if tokens_L is None else self.head_VD[tokens_L]
        return F.linear(hidden_MD.float(), head.float())


def rotations(positions_T: Tensor, head_dim: int, theta: float) -> Tensor:
    """Return float32[2, T, K]: cosines and sines of each position's angles, theta^(-2i/K) a step, both halves alike."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions_T.device).float() / head_dim
    # 1 / theta^x, not theta^-x: so the weights were trained, and at position 400 the two differ by 1e-5 of an angle.
    angles = positions_T.float()[:, None] * (1.0 / theta**steps)[None, :]
    angles = torch.cat([angles, angles], dim=1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x_THK: Tensor, rotation_2TK: Tensor) -> Tensor:
    """Rotate the pairs (i, i + K/2) of every head by their token's angles. Su et al. 2021, in Llama's layout."""
    low, high = x_THK.chunk(2, dim=-1)
    cos, sin = rotation_2TK[0][:, None], rotation_2TK[1][:, None]
    return x_THK * cos + torch.cat([-high, low], dim=-1) * sin

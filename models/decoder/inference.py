"""A decoder prepared for passes without gradient: maps that read the same input made one, residuals in float32.

What reads a hidden state decides what has to be computed: a prefill is read by later keys only, so its last layer is
keys and values alone; a score is read at each question's last token, so the rest of the last layer runs for those rows
alone.
"""

# T = tokens, M = rows that are read, P = prefix tokens, D = hidden_size, F = intermediate_size, L = layers
# H = attention heads, G = key-value heads, K = head_dim

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor, nn

from kernels.pointwise import add, add_norm, rotate, swiglu
from kernels.prefix_attention import Sight, prefix_attention
from models.decoder.cores import run_on_cores
from models.decoder.linear import Linear, Precision, dtype_of, prepare
from models.decoder.network import Decoder, Layer, rotations

MIN_TOKENS = 32
"""Fewer tokens are not worth another core."""
R = TypeVar("R")
Stop = Callable[[], bool]


class Stopped(Exception):
    """A pass that its caller no longer waits for."""


@dataclass(frozen=True, slots=True)
class _Layer:
    before_D: Tensor
    query: Linear | None
    """Apart from keys and values in the last layer only."""
    key_value: Linear
    """Queries, keys and values of all other layers."""
    output: Linear
    after_D: Tensor
    gate_up: Linear
    down: Linear


class Inference:
    """One decoder's weights at one precision; the decoder may be dropped. Safe to use from several threads."""

    def __init__(self, decoder: Decoder, precision: Precision) -> None:
        self.config = decoder.config
        self.precision = precision
        self.dtype = dtype_of(precision)
        self.num_cores = torch.get_num_threads()
        model = decoder.model
        last = self.config.num_hidden_layers - 1
        self.embedding_VD = model.embed_tokens.weight.detach()
        self.layers = [_prepare(layer, precision, split=place == last) for place, layer in enumerate(model.layers)]
        self.norm_D = model.norm.weight.detach().float()

    def prefill(self, tokens_T: Tensor, key_LGPK: Tensor, value_LGPK: Tensor, stop: Stop | None) -> None:
        """Write keys and values of T tokens into the last T places of both; the places before hold the prefix.

        The tokens are cut into runs, one for a core; in every layer a run waits for the keys of those before it.
        """
        before = key_LGPK.shape[2] - len(tokens_T)
        num_runs = max(1, min(self.num_cores, len(tokens_T) // MIN_TOKENS))
        cuts = [len(tokens_T) * place // num_runs for place in range(num_runs + 1)]
        done = [[Event() for _ in self.layers] for _ in range(num_runs)]

        def run(number: int) -> None:
            start, end = cuts[number], cuts[number + 1]

            def keep(layer: int, key_TGK: Tensor, value_TGK: Tensor) -> None:
                key_LGPK[layer, :, before + start : before + end] = key_TGK.transpose(0, 1)
                value_LGPK[layer, :, before + start : before + end] = value_TGK.transpose(0, 1)
                done[number][layer].set()
                for earlier in done[:number]:
                    earlier[layer].wait()

            positions_T = torch.arange(before + start, before + end, device=tokens_T.device)
            prefix = (key_LGPK[:, :, : before + start], value_LGPK[:, :, : before + start])
            try:
                self._run(tokens_T[start:end], positions_T, prefix, Sight.causal(end - start), None, keep, stop)
            finally:
                for event in done[number]:
                    event.set()

        self.spread([partial(run, number) for number in range(num_runs)])

    def spread(self, runs: Sequence[Callable[[], R]]) -> list[R]:
        """Return what each run returned, on a CPU one to a core."""
        if self.embedding_VD.device.type != "cpu":
            return [run() for run in runs]
        return run_on_cores(runs, self.num_cores)

    def read(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        prefix: tuple[Tensor, Tensor],
        sight: Sight,
        rows_M: Tensor,
        stop: Stop | None,
    ) -> Tensor:
        """Return float32[M, D]: hidden states of the rows after the last norm. prefix: keys and values [L, G, P, K]."""
        hidden_MD = self._run(tokens_T, positions_T, prefix, sight, rows_M, None, stop)
        return add_norm(hidden_MD, None, self.norm_D, self.config.rms_norm_eps, torch.float32)

    def _run(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        prefix: tuple[Tensor, Tensor],
        sight: Sight,
        rows_M: Tensor | None,
        keep: Callable[[int, Tensor, Tensor], None] | None,
        stop: Stop | None,
    ) -> Tensor:
        config = self.config
        heads, groups, eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        x_TD = self.embedding_VD[tokens_T].float()
        delta_TD: Tensor | None = None
        rotation_2TK = rotations(positions_T, config.head_dim, config.rope_theta)
        for place, layer in enumerate(self.layers):
            if stop is not None and stop():
                raise Stopped
            normed_TD = add_norm(x_TD, delta_TD, layer.before_D, eps, self.dtype)
            heads_THK = self._heads(layer.key_value(normed_TD))
            num_queries = heads if layer.query is None else 0
            rotate(heads_THK, num_queries + groups, rotation_2TK)
            query, key, value = torch.split(heads_THK, [num_queries, groups, groups], 1)
            if keep is not None:
                keep(place, key, value)
            if layer.query is not None:
                if rows_M is None:
                    return x_TD
                query = self._heads(layer.query(normed_TD[rows_M]))
                rotate(query, heads, rotation_2TK[:, rows_M])
                x_TD, sight = x_TD[rows_M], sight.take(rows_M.cpu())
            mixed_THK = prefix_attention(query, key, value, prefix[0][place], prefix[1][place], sight)
            normed_TD = add_norm(x_TD, layer.output(mixed_THK.flatten(1)), layer.after_D, eps, self.dtype)
            delta_TD = layer.down(swiglu(layer.gate_up(normed_TD)))
        assert delta_TD is not None
        add(x_TD, delta_TD)
        return x_TD

    def _heads(self, joined_TE: Tensor) -> Tensor:
        return joined_TE.view(len(joined_TE), -1, self.config.head_dim)


def _prepare(layer: nn.Module, precision: Precision, *, split: bool) -> _Layer:
    assert isinstance(layer, Layer)
    attention, mlp = layer.self_attn, layer.mlp

    def joined(*weights: Tensor) -> Linear:
        return prepare(torch.cat([weight.detach() for weight in weights]), precision)

    query, key, value = (x.weight for x in (attention.q_proj, attention.k_proj, attention.v_proj))
    return _Layer(
        before_D=layer.input_layernorm.weight.detach().float(),
        query=joined(query) if split else None,
        key_value=joined(key, value) if split else joined(query, key, value),
        output=joined(attention.o_proj.weight),
        after_D=layer.post_attention_layernorm.weight.detach().float(),
        gate_up=joined(mlp.gate_proj.weight, mlp.up_proj.weight),
        down=joined(mlp.down_proj.weight),
    )

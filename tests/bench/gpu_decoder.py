"""The decoder's GPU kernels on this machine's card; `tests.bench.gpu` runs it.

Prefix attention against its reference first, then timed beside torch's scaled-dot-product attention over the same keys
with a mask that says who sees whom, and beside two floors: its products at the rate of a large matrix product, and
a copy of the bytes it must read and write.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.prefix_attention import Sight, prefix_attention
from tests.bench.record import Record

HEADS, GROUPS, HEAD = 32, 8, 128
"""Of an 8B Llama."""
SHAPES = [(512, 32, 20), (4096, 128, 50), (12_000, 150, 50)]
"""Tokens of the prompt, of an item, items; the last is that of LinkedIn's published serving figures."""
PRODUCT = 8192
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}

Timer = Callable[[Callable[[], object]], list[float]]


def measure(record: Record, card: str, gb_per_s: float, time_ms: Timer) -> list[str]:
    """Fill the record; returns the cases whose values differ from the reference's."""
    failed = []
    for dtype in TOLERANCE:
        square = torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=dtype)
        flops_per_ms = 2 * PRODUCT**3 / min(time_ms(lambda square=square: square @ square))
        for shape in SHAPES:
            failed += _time(record, card, gb_per_s, flops_per_ms, time_ms, dtype, *shape)
    return failed


def _time(
    record: Record,
    card: str,
    gb_per_s: float,
    flops_per_ms: float,
    time_ms: Timer,
    dtype: torch.dtype,
    num_prefix: int,
    num_item: int,
    num_items: int,
) -> list[str]:
    random = torch.Generator("cuda").manual_seed(0)
    num_own = num_item * num_items

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=random).to(dtype)

    own, prefix = (num_own, GROUPS, HEAD), (GROUPS, num_prefix, HEAD)
    inputs = [draw(num_own, HEADS, HEAD), draw(*own), draw(*own), draw(*prefix), draw(*prefix)]
    start = torch.arange(num_own) // num_item * num_item
    sight = Sight(torch.stack([start, start, start, torch.arange(1, num_own + 1)], 1).int())

    place = torch.arange(num_own, device="cuda")
    same = (place[:, None] // num_item == place[None] // num_item) & (place[:, None] >= place[None])
    mask = torch.cat([same.new_ones(num_own, num_prefix), same], 1)

    def peer() -> Tensor:
        query, key, value, prefix_key, prefix_value = inputs
        keys = torch.cat([prefix_key, key.transpose(0, 1)], 1)[None]
        values = torch.cat([prefix_value, value.transpose(0, 1)], 1)[None]
        return F.scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
        )[0]

    name = f"prefix_attention_{str(dtype).removeprefix('torch.')}_{num_prefix}x{num_item}x{num_items}"
    few = torch.arange(0, num_own, max(1, num_own // 256))  # the reference holds every score of its queries
    found = prefix_attention(*inputs, sight, backend="gpu")
    expected = prefix_attention(inputs[0][few.cuda()], *inputs[1:], sight.take(few), backend="reference")
    fits = bool((found[few.cuda()].float() - expected.float()).abs().max() <= TOLERANCE[dtype])
    flops = 4 * HEADS * HEAD * (num_own * num_prefix + num_items * num_item * (num_item + 1) / 2)
    num_bytes = sum(x.numel() * x.element_size() for x in [*inputs, found])
    floor = max(flops / flops_per_ms, num_bytes / gb_per_s / 1e6)
    ours = record.add_samples(f"{name}_triton", time_ms(lambda: prefix_attention(*inputs, sight)), "ms", card).value
    record.figures[f"gpu_{name}_ms"] = ours
    record.figures[f"gpu_{name}_of_floor"] = floor / ours
    try:
        theirs = record.add_samples(f"{name}_sdpa", time_ms(peer), "ms", card).value
    except torch.OutOfMemoryError as error:
        record.add(f"{name}_sdpa", 0.0, "ms", str(error))
    else:
        record.figures[f"gpu_{name}_vs_sdpa"] = theirs / ours
    return [] if fits else [name]

"""Inputs that the tests of prefix attention share."""

import torch

from kernels.prefix_attention import Sight


def branches(sequences):
    """The sight of sequences of (trunk, [branches]) tokens: the first branch continues the trunk, others leave it."""
    bounds, first = [], 0
    for trunk, lengths in sequences:
        start = first + trunk + lengths[0]
        bounds += [(first, first, first, stop) for stop in range(first + 1, start + 1)]
        for length in lengths[1:]:
            bounds += [(first, first + trunk, start, stop) for stop in range(start + 1, start + length + 1)]
            start += length
        first = start
    return Sight(torch.tensor(bounds, dtype=torch.int32))


def draw_inputs(num_tokens, num_prefix, num_heads, num_groups, head, dtype=torch.float32, device="cpu", seed=0):
    """Queries, keys, values, prefix keys, prefix values; scores differ by a few, so softmax is far from a mean."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(*shape, generator=random) * 1.5).to(device, dtype)

    own, prefix = (num_tokens, num_groups, head), (num_groups, num_prefix, head)
    return [draw(num_tokens, num_heads, head), draw(*own), draw(*own), draw(*prefix), draw(*prefix)]

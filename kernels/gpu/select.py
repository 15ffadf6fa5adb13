"""Triton kernels that pick and order candidates: radix selection by (score, key), ranking by counting.

# B = queries, K = results

Candidates arrive in an order that atomics decide; what is selected depends only on scores and keys. One program
per query selects: its candidates are few (some ten thousand) and stay in the L2 cache between passes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _order(score):
    """int64 in 0 .. 2**32 - 1, ascending with the float32 score; -0.0 equals 0.0."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    flipped = bits ^ ((bits >> 31) | -2147483648)
    return flipped.to(tl.int64) & 0xFFFFFFFF


@triton.jit
def _find_score(score_ptr, count, wanted, BLOCK: tl.constexpr):
    """(order of the `wanted`-th best score, how many of that score belong to the best, how many have it)."""
    digit_of_bin = tl.arange(0, 512)
    prefix = count.to(tl.int64) * 0
    equal = count * 0
    for turn in range(4):
        shift = 24 - 8 * turn
        histogram = tl.zeros([512], tl.int32)
        for start in range(0, count, BLOCK):
            place = start + tl.arange(0, BLOCK)
            order = _order(tl.load(score_ptr + place, mask=place < count, other=0.0))
            counted = (place < count) & ((order >> shift) >> 8 == prefix)
            # Bin 256 takes what does not count: every program version of Triton's histogram accepts this.
            histogram += tl.histogram(tl.where(counted, ((order >> shift) & 255).to(tl.int32), 256), 512)
        histogram = tl.where(digit_of_bin < 256, histogram, 0)
        at_least = tl.sum(histogram, 0) - tl.cumsum(histogram, 0) + histogram
        digit = tl.sum(((at_least >= wanted) & (digit_of_bin < 256)).to(tl.int32), 0) - 1
        equal = tl.sum(tl.where(digit_of_bin == digit, histogram, 0), 0)
        wanted -= tl.sum(tl.where(digit_of_bin == digit, at_least, 0), 0) - equal
        prefix = prefix * 256 + digit
    return prefix, wanted, equal


@triton.jit
def _find_key(score_ptr, row_ptr, key_ptr, count, score_order, wanted, BLOCK: tl.constexpr):
    """The `wanted`-th lowest key among candidates of one score."""
    digit_of_bin = tl.arange(0, 512)
    prefix = count.to(tl.int64) * 0
    for turn in range(8):
        shift = 56 - 8 * turn
        sign = tl.where(turn == 0, 128, 0)  # the first byte is signed: shifted by 128 it sorts as the others do
        histogram = tl.zeros([512], tl.int32)
        for start in range(0, count, BLOCK):
            place = start + tl.arange(0, BLOCK)
            order = _order(tl.load(score_ptr + place, mask=place < count, other=0.0))
            counted = (place < count) & (order == score_order)
            row = tl.load(row_ptr + place, mask=counted, other=0)
            key = tl.load(key_ptr + row, mask=counted, other=0)
            counted = counted & ((turn == 0) | ((key >> shift) >> 8 == prefix))
            digit = ((key >> shift) & 255).to(tl.int32) ^ sign
            histogram += tl.histogram(tl.where(counted, digit, 256), 512)
        histogram = tl.where(digit_of_bin < 256, histogram, 0)
        at_most = tl.cumsum(histogram, 0)
        digit = tl.sum(((at_most < wanted) & (digit_of_bin < 256)).to(tl.int32), 0)
        wanted -= tl.sum(tl.where(digit_of_bin < digit, histogram, 0), 0)
        prefix = prefix * 256 + digit - sign
    return prefix


@triton.jit(do_not_specialize=["count", "wanted"])
def set_threshold(score_ptr, threshold_ptr, count, wanted, BLOCK: tl.constexpr):
    """threshold[B] = the `wanted`-th best of score[B, count], -inf where the sample holds fewer admitted rows."""
    query = tl.program_id(0).to(tl.int64)
    order, _, _ = _find_score(score_ptr + query * count, count, wanted, BLOCK)
    flipped = tl.where(order >= 2147483648, order - 2147483648, 4294967295 - order)
    negative = tl.where(order >= 2147483648, 0, -2147483648)
    bits = tl.where(negative == 0, flipped, flipped - 4294967296)
    tl.store(threshold_ptr + query, bits.to(tl.int32).to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["room", "size"])
def select_best(
    score_ptr, row_ptr, count_ptr, key_ptr, threshold_ptr, status_ptr, out_score_ptr, out_row_ptr, out_count_ptr,
    room, size, CHECK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The `size` best of a query's candidates [B, room] by (score, key), in no particular order, to out[B, size].

    CHECK also writes status[B]: 1 where candidates were dropped for want of room, 2 where a finite threshold let
    fewer than `size` through.
    """
    query = tl.program_id(0).to(tl.int64)
    found = tl.load(count_ptr + query)
    if CHECK:
        short = (found < size) & (tl.load(threshold_ptr + query) > float("-inf"))
        tl.store(status_ptr + query, tl.where(found > room, 1, tl.where(short, 2, 0)))
    count = tl.minimum(found, room)
    score_ptr += query * room
    row_ptr += query * room
    wanted = tl.minimum(count, size)
    score_order, taken, equal = _find_score(score_ptr, count, wanted, BLOCK)
    last_key = count.to(tl.int64) * 0 + 9223372036854775807
    if taken < equal:
        last_key = _find_key(score_ptr, row_ptr, key_ptr, count, score_order, taken, BLOCK)
    written = count * 0
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + place, mask=place < count, other=0.0)
        row = tl.load(row_ptr + place, mask=place < count, other=0)
        order = _order(score)
        tied = (place < count) & (order == score_order)
        key = tl.load(key_ptr + row, mask=tied, other=0)
        flag = ((place < count) & ((order > score_order) | (tied & (key <= last_key)))).to(tl.int32)
        at = query * size + written + tl.cumsum(flag, 0) - flag
        tl.store(out_score_ptr + at, score, mask=flag != 0)
        tl.store(out_row_ptr + at, row, mask=flag != 0)
        written += tl.sum(flag, 0)
    tl.store(out_count_ptr + query, written)


@triton.jit(do_not_specialize=["size"])
def rank_hits(
    score_ptr, row_ptr, count_ptr, key_ptr, out_score_ptr, out_key_ptr, out_row_ptr, size,
    BLOCK: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Write each hit to the place that the number of better hits gives, and the padding after the last.

    Counting costs K^2 comparisons a query, all independent: no sorting network, and any K.
    """
    query = tl.program_id(1).to(tl.int64)
    score_ptr += query * size
    row_ptr += query * size
    count = tl.load(count_ptr + query)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    listed = place < count
    score = tl.load(score_ptr + place, mask=listed, other=float("-inf"))
    row = tl.load(row_ptr + place, mask=listed, other=-1)
    key = tl.load(key_ptr + row, mask=listed, other=-1)
    rank = tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, OTHERS):
        other = start + tl.arange(0, OTHERS)
        other_score = tl.load(score_ptr + other, mask=other < count, other=float("-inf"))[None, :]
        other_row = tl.load(row_ptr + other, mask=other < count, other=0)
        other_key = tl.load(key_ptr + other_row, mask=other < count, other=0)[None, :]
        better = (other_score > score[:, None]) | ((other_score == score[:, None]) & (other_key < key[:, None]))
        rank += tl.sum((better & (other < count)[None, :]).to(tl.int32), 1)
    at = query * size + tl.where(listed, rank, place)
    tl.store(out_score_ptr + at, score, mask=place < size)
    tl.store(out_key_ptr + at, key, mask=place < size)
    tl.store(out_row_ptr + at, row, mask=place < size)

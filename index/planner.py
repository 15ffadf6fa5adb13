"""Which way each query of a search runs. Every way gives the same hits; only the time differs."""

# B = queries, G = filters of one search

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kernels.filtered_topk import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Nanoseconds of a search's parts on this machine; `LiveIndex.warm_up` measures them.

    The defaults were measured at 128 dimensions on two cores of an AMD EPYC with AVX-512.
    """

    stream: float = 2.8  # per row of the index, admitted or not
    compact: float = 10.0  # per admitted row: list it, fetch its code
    gather: float = 280.0  # per row whose float32 vector is fetched and scored in full precision
    batch: float = 9.0  # per row of a pass for several queries
    batch_query: float = 0.7  # per row and query of such a pass
    signs: float = 0.7  # per row of the index: its 1-bit code, where there is one
    start: float = 30_000.0  # per query whose codes are scanned: encode it, merge its candidates

    def prefers_signs(self, num_queries: int) -> bool:
        """Whether 1-bit codes, read once for every query, cost less than one exact pass for all of them."""
        return self.signs * num_queries < self.batch + self.batch_query * num_queries


class Step(NamedTuple):
    """Queries that run together ("batch") or one by one in the same way."""

    strategy: Strategy | Literal["batch"]
    queries: tuple[int, ...]


RESCORED_PER_RESULT = 1.5  # rows that int8 codes leave to full precision, over k


def choose_strategy(num_matched: int, num_rows: int, k: int, costs: Costs) -> Strategy:
    """gather: score the matches in full precision; compact: scan their codes first; stream: scan in row order."""
    rescored = costs.start + costs.gather * min(num_matched, RESCORED_PER_RESULT * k)
    by_codes = min(costs.compact * num_matched, costs.stream * num_rows)
    if costs.gather * num_matched <= by_codes + rescored:
        return "gather"
    return "compact" if costs.compact * num_matched < costs.stream * num_rows else "stream"


def plan(
    matched_G: Sequence[int], group_B: Sequence[int], num_rows: int, k: int, costs: Costs, *, batches: bool
) -> list[Step]:
    """Steps for the queries whose filter, number group_B[b], admits anything.

    batches: whether several queries may share a pass. Those that would each stream over all rows share it, whatever
    their filters, where that is cheaper; so do those of one filter that would each list its rows. Those of
    one filter join a pass over all rows that others need, where that is cheaper than listing.
    """
    steps: list[Step] = []
    streaming: list[int] = []
    for group, num_matched in enumerate(matched_G):
        queries = tuple(query for query, each in enumerate(group_B) if each == group)
        if not num_matched or not queries:
            continue
        strategy = choose_strategy(num_matched, num_rows, k, costs)
        if strategy == "stream":
            streaming.extend(queries)
        elif strategy == "compact" and batches and _shares(len(queries), costs.compact, costs):
            steps.append(Step("batch", queries))
        else:
            steps.append(Step(strategy, queries))
    if not streaming:
        return steps
    if not (batches and _shares(len(streaming), costs.stream, costs)):
        return [*steps, Step("stream", tuple(streaming))]
    joined = {step for step in steps if step.strategy != "gather" and _joins(step, matched_G, group_B, num_rows, costs)}
    together = (*streaming, *(query for step in joined for query in step.queries))
    return [*(step for step in steps if step not in joined), Step("batch", tuple(sorted(together)))]


def _joins(step: Step, matched_G: Sequence[int], group_B: Sequence[int], num_rows: int, costs: Costs) -> bool:
    """Whether queries of one filter cost less within a pass over all rows, made anyway, than by themselves."""
    size, num_matched = len(step.queries), matched_G[group_B[step.queries[0]]]
    row = costs.batch + costs.batch_query * size if step.strategy == "batch" else costs.compact * size
    start = 0.0 if step.strategy == "batch" else costs.start * size
    return costs.batch_query * size * num_rows < row * num_matched + start


def _shares(num_queries: int, alone: float, costs: Costs) -> bool:
    """Whether a row costs less in one pass than `alone`, once for every query."""
    return num_queries > 1 and costs.batch + costs.batch_query * num_queries < alone * num_queries

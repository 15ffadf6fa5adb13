"""The searching side of an index: filters into masks, a plan for the queries of a call, kernels over the rows.

It sees one moment of the state and changes nothing.
"""

# B = queries, N = rows, D = dimensions, G = distinct masks of one call, K = results, W = mask words

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.bits import Words, count_bits, plane_of
from index.boosts import Boost, add_weights, merge
from index.calibrate import calibrate
from index.checks import MAX_RESULTS, check_k, check_keys, check_queries
from index.code_rows import CodeRows
from index.exclusions import NO_ROWS, Excluded, check_excludes, clear_rows, count_admitted, drop_rows, split_rows
from index.hits import Hits
from index.machine import CostsFrom, describe_machine
from index.planner import Costs, Step, choose_strategy, plan
from index.recall import RecallSample
from index.state import State, View
from index.tree import Filter
from kernels.batched_topk import batched_topk, has_batches
from kernels.codes import Codes
from kernels.column_topk import column_topk
from kernels.filtered_topk import Backend, Strategy, TopK, filtered_topk, has_numba
from kernels.sign_topk import sign_topk

MAX_DEPTH = MAX_RESULTS  # of a search by 1-bit codes


class Searcher:
    """The calls of `LiveIndex` that search."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.backend: Backend = state.config.backend
        if state.config.backend == "auto":
            self.backend = "cpu" if has_numba() else "reference"
        self.costs = Costs()  # what the planner weighs; `warm_up` measures them
        self.costs_from: CostsFrom = "default"
        self.recall = RecallSample(state.config.recall_every, state.config.recall_window)

    def search(
        self,
        query: ArrayLike,
        k: int,
        filter: Filter | None,
        exclude: ArrayLike | None,
        filters: Sequence[Filter | None] | None,
        excludes: Sequence[ArrayLike | None] | None,
        boosts: Sequence[Boost] = (),
        depth: int | None = None,
    ) -> Hits:
        query_BD = check_queries(query, self._state.config.dim)
        check_k(k)
        self._check_depth(depth, k)
        num_queries = query_BD.shape[0]
        if filters is not None and (filter is not None or len(filters) != num_queries):
            raise ValueError(f"{len(filters)} filters for {num_queries} queries: expected one each, and no `filter`")
        question = _Question(
            query_BD=query_BD,
            k=k,
            filter_B=[filter] * num_queries if filters is None else list(filters),
            exclude_M=check_keys([] if exclude is None else exclude),
            exclude_BM=check_excludes([None] * num_queries if excludes is None else excludes, num_queries),
            boosts=tuple(boosts),
            shared=filters is None and excludes is None,
        )
        with self._state.reading(question.keys) as view:
            hits = self._answer(question, view, depth)
        if "signs" not in hits.strategy.split("+"):
            return hits

        def measure() -> tuple[Hits, Hits]:
            with self._state.reading(question.keys) as view:
                return self._answer(question, view, depth), self._answer(question, view, None)

        self.recall.note(measure)
        recall, num_samples = self.recall.read()
        return replace(hits, recall=recall, recall_samples=num_samples)

    def _check_depth(self, depth: int | None, k: int) -> None:
        if depth is None:
            return
        if self._state.config.signs is None:
            raise ValueError(f"depth = {depth}: this index has no 1-bit codes, expected `signs` in its IndexConfig")
        if not k <= depth <= MAX_DEPTH:
            raise ValueError(f"depth = {depth}, expected k = {k} to {MAX_DEPTH}")

    def _answer(self, question: _Question, view: View, depth: int | None) -> Hits:
        """The answer of one moment; exact without a depth."""
        query_BD, k = question.query_BD, question.k
        num_queries = len(query_BD)
        shared_rows, excluded_B = question.split(view.row_M)
        wanted_B = [(tree, own.cleared.tobytes()) for tree, own in zip(question.filter_B, excluded_B, strict=True)]
        group_of = {wanted: group for group, wanted in enumerate(dict.fromkeys(wanted_B))}
        group_B = np.array([group_of[wanted] for wanted in wanted_B], np.int64)
        admitted = {tree: self._admit(view, tree, shared_rows) for tree in dict.fromkeys(question.filter_B)}
        masks = [clear_rows(admitted[tree], np.frombuffer(cleared, np.int64)) for tree, cleared in group_of]
        matched_G = [count_bits(mask_W) for mask_W in masks]
        surplus_B = [count_admitted(masks[group], own.dropped) for group, own in zip(group_B, excluded_B, strict=True)]
        boosted = [(self._admit(view, each.filter, NO_ROWS), each.weight) for each in question.boosts]
        any_W = np.bitwise_or.reduce([words for words, _ in boosted]) if boosted else None
        plain = _Masks(masks if any_W is None else [mask_W & ~any_W for mask_W in masks], group_B)
        narrowed = False
        if depth is not None:
            plain, narrowed = self._narrow(query_BD, view, plain, k, depth, surplus_B)
        counted_G = matched_G if any_W is None and not narrowed else [count_bits(mask_W) for mask_W in plain.mask_G]
        steps = self._plan(counted_G, plain.group_B.tolist(), view, k + max(surplus_B, default=0))
        found: dict[int, TopK] = {}
        for step in steps:
            surplus = max((surplus_B[query] for query in step.queries), default=0)
            found.update(self._run(step, query_BD, view, plain.mask_G, plain.group_B, k + surplus))
        if any_W is not None:
            for query, query_D in enumerate(query_BD):
                mask_W = masks[group_B[query]] & any_W
                best = self._run_boosted(query_D, view, mask_W, boosted, k + surplus_B[query])
                found[query] = merge(found.get(query), best, view.arrays.key_N, k + surplus_B[query])
        found = {query: drop_rows(best, excluded_B[query].dropped, k) for query, best in found.items()}
        strategies: set[str] = {step.strategy for step in steps if step.queries}
        if any_W is not None and found:
            strategies.add("boosted")
        if narrowed:
            strategies.add("signs")
        ran = "+".join(sorted(strategies)) or "empty"
        matched_B = tuple(
            matched_G[group] - surplus for group, surplus in zip(group_B.tolist(), surplus_B, strict=True)
        )
        exact = self._state.config.store_vectors and not narrowed
        return _collect(found, view, num_queries, k, matched_B, ran, shared=question.shared, exact=exact)

    def _plan(self, matched_G: Sequence[int], group_B: Sequence[int], view: View, k: int) -> list[Step]:
        if self.backend == "reference":
            return [Step("gather", tuple(query for query, group in enumerate(group_B) if matched_G[group]))]
        batches = len(group_B) > 1 and has_batches(self._state.config.dim)
        return plan(matched_G, group_B, view.num_words * 64, k, self.costs, batches=batches)

    def _narrow(
        self,
        query_BD: NDArray[np.float32],
        view: View,
        masks: _Masks,
        k: int,
        depth: int,
        surplus_B: Sequence[int],
    ) -> tuple[_Masks, bool]:
        """Masks of the best rows by 1-bit codes, where those cost less than an exact answer; whether any is."""
        signs, num_rows = view.arrays.code_rows.signs, view.num_words * 64
        assert signs is not None
        matched_G = [count_bits(mask_W) for mask_W in masks.mask_G]
        narrowed_G = [
            matched > depth and choose_strategy(matched, num_rows, k, self.costs) == "stream" for matched in matched_G
        ]
        num_narrowed = sum(narrowed_G[group] for group in masks.group_B.tolist())
        shares = num_narrowed > 1 and has_batches(self._state.config.dim)
        if not num_narrowed or (shares and not self.costs.prefers_signs(num_narrowed)):
            return masks, False
        mask_G, group_B = list(masks.mask_G), masks.group_B.copy()
        for query, group in enumerate(masks.group_B.tolist()):
            if narrowed_G[group]:
                rows = sign_topk(
                    query_BD[query],
                    signs.first(num_rows),
                    masks.mask_G[group],
                    depth + surplus_B[query],
                    backend=self.backend,
                    num_threads=self._state.config.num_threads,
                )
                group_B[query] = len(mask_G)
                mask_G.append(plane_of(rows, view.num_words))
        return _Masks(mask_G, group_B), True

    def _run(
        self,
        step: Step,
        query_BD: NDArray[np.float32],
        view: View,
        masks: Sequence[Words],
        group_B: NDArray[np.int64],
        k: int,
    ) -> dict[int, TopK]:
        """The best rows of a step's queries, by query."""
        queries, rows = list(step.queries), _rows_of(view)
        if step.strategy == "batch":
            used_G, place_B = np.unique(group_B[queries], return_inverse=True)
            mask_GW = np.stack([masks[group] for group in used_G])
            threads = self._state.config.num_threads
            best = batched_topk(
                query_BD[queries],
                *rows,
                mask_GW,
                place_B.astype(np.int64),
                k,
                backend=self.backend,
                num_threads=threads,
            )
            return dict(zip(queries, best, strict=True))
        return {
            query: self._run_one(query_BD[query], rows, masks[group_B[query]], k, step.strategy) for query in queries
        }

    def _run_boosted(
        self, query_D: NDArray[np.float32], view: View, mask_W: Words, boosted: list[tuple[Words, float]], k: int
    ) -> TopK:
        """The best of the boosted rows of one query."""
        strategy = choose_strategy(count_bits(mask_W), view.num_words * 64, k, self.costs)
        listed: Strategy = "gather" if strategy == "gather" else "compact"
        return self._run_one(query_D, _rows_of(view), mask_W, k, listed, add_weights(mask_W, boosted))

    def _run_one(
        self,
        query_D: NDArray[np.float32],
        rows: _Rows,
        mask_W: Words,
        k: int,
        strategy: Strategy,
        bonus_M: NDArray[np.float64] | None = None,
    ) -> TopK:
        threads = self._state.config.num_threads
        return filtered_topk(
            query_D, *rows, mask_W, k, strategy=strategy, backend=self.backend, num_threads=threads, bonus_M=bonus_M
        )

    def search_signal(self, name: str, k: int, filter: Filter | None, exclude: ArrayLike | None) -> Hits:
        if name not in self._state.config.signals:
            raise ValueError(f"signal {name!r}: the index has {list(self._state.config.signals)}")
        check_k(k)
        with self._state.reading(exclude) as view:
            mask_W = self._admit(view, filter, view.row_M)
            num_rows = view.num_words * 64
            column = view.arrays.signal_SN[self._state.config.signals.index(name), :num_rows]
            best = column_topk(column, view.arrays.key_N[:num_rows], mask_W, k, backend=self.backend)
            num_matched = count_bits(mask_W)
            return _collect(
                {0: best}, view, 1, k, (num_matched,), "column" if num_matched else "empty", shared=True, exact=True
            )

    def count(self, filter: Filter | None) -> int:
        with self._state.reading(None) as view:
            return count_bits(self._admit(view, filter, view.row_M))

    def warm_up(self) -> None:
        vector_ND, key_N = np.zeros((64, self._state.config.dim), np.float32), np.arange(64)
        code_rows = CodeRows.reserve(self._state.config, 64, 64, self._state.arrays.code_rows.frame)
        codes = code_rows.codes
        if not self._state.config.store_vectors:
            vector_ND = vector_ND[:0]
        mask_W, query_BD = np.ones(1, np.uint64), np.zeros((2, self._state.config.dim), np.float32)
        for strategy in get_args(Strategy):
            filtered_topk(query_BD[0], vector_ND, codes, key_N, mask_W, 1, strategy=strategy, backend=self.backend)
        batched_topk(query_BD, vector_ND, codes, key_N, mask_W[None], np.zeros(2, np.int64), 1, backend=self.backend)
        column_topk(np.zeros(64), key_N, mask_W, 1, backend=self.backend)
        if code_rows.signs is not None:
            sign_topk(query_BD[0], code_rows.signs, mask_W, 1, backend=self.backend)
        if self.costs_from == "snapshot":
            return
        with self._state.reading(None) as view:
            arrays = view.arrays
            self.costs = calibrate(
                arrays.vector_ND,
                arrays.code_rows,
                arrays.key_N,
                view.live_W,
                self.backend,
                self._state.config.num_threads,
            )
            self.costs_from = "default" if self.costs == Costs() else "measured"

    def describe_machine(self) -> dict[str, object]:
        return describe_machine(self._state.config.dim, self.backend, self._state.config.num_threads)

    def _admit(self, view: View, filter: Filter | None, row_M: NDArray[np.int64]) -> Words:
        """Live, admitted by the filter, and not one of the rows (-1: no row)."""
        mask_W = view.live_W
        if filter is not None:
            mask_W = mask_W & view.arrays.columns.evaluate(filter, view.num_words)
        return clear_rows(mask_W, row_M)


class _Masks(NamedTuple):
    """Which rows each query is searched among: mask number group_B[b] of the G."""

    mask_G: Sequence[Words]
    group_B: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """The checked arguments of one call."""

    query_BD: NDArray[np.float32]
    k: int
    filter_B: Sequence[Filter | None]
    exclude_M: NDArray[np.int64]  # keys that no query may be answered with
    exclude_BM: Sequence[NDArray[np.int64]]
    boosts: tuple[Boost, ...]
    shared: bool  # one filter and one exclusion for all queries

    @property
    def keys(self) -> NDArray[np.int64]:
        """All keys to be excluded, whose rows a view finds."""
        return np.concatenate([self.exclude_M, *self.exclude_BM])

    def split(self, row_M: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Excluded]]:
        """The rows of `keys`: those excluded for all queries, and what each query excludes beside them."""
        count = self.exclude_M.size
        return row_M[:count], split_rows(row_M[count:], [own_M.size for own_M in self.exclude_BM])


_Rows = tuple[NDArray[np.float32], Codes, NDArray[np.int64]]
"""Vectors, codes and keys, as the kernels take them."""


def _rows_of(view: View) -> _Rows:
    num_rows, arrays = view.num_words * 64, view.arrays
    return arrays.vector_ND[:num_rows], arrays.code_rows.first(num_rows), arrays.key_N[:num_rows]


def _collect(
    found: Mapping[int, TopK],
    view: View,
    num_queries: int,
    k: int,
    matched_B: tuple[int, ...],
    strategy: str,
    *,
    shared: bool,
    exact: bool,
) -> Hits:
    """shared: whether the queries had one filter, so that they matched the same items."""
    keys = np.full((num_queries, k), -1, np.int64)
    scores = np.full((num_queries, k), -np.inf, np.float32)
    with np.errstate(over="ignore"):
        for query, best in found.items():
            keys[query, : best.row_K.size] = view.arrays.key_N[best.row_K]
            scores[query, : best.row_K.size] = best.score_K
    return Hits(
        keys=keys,
        scores=scores,
        exact=exact,
        num_matched=max(matched_B, default=0) if shared else sum(matched_B),
        num_scanned=sum(best.num_scanned for best in found.values()),
        num_rescored=sum(best.num_rescored for best in found.values()),
        strategy=strategy,
        matched_per_query=() if shared else matched_B,
    )

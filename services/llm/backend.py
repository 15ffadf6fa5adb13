"""Who computes: rows of tokens in, scores out. The model in this process; `vllm.py` has another server's."""

# N = candidates, Q = questions

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

import numpy as np

from models.decoder.inference import Stopped
from models.decoder.prefix_cache import PrefixCache
from models.decoder.scoring import Candidate, Labels, Prefix, Scorer, Scores
from services.llm.scheduler import Lease


class Backend(Protocol):
    """What the engine needs of whoever computes. Generators yield between chunks, as the scheduler's work does."""

    name: str
    vocab_size: int
    max_tokens: int
    """Of a prefix and what is scored behind it."""

    def unread(self, prefix: Sequence[int]) -> int:
        """How many of a prefix's tokens would have to be computed."""
        ...

    def prefill(self, prefix: Sequence[int], lease: Lease) -> Generator[None, None, None]:
        """Read a prefix, so that scoring behind it is quick."""
        ...

    def score(
        self,
        prefix: Sequence[int],
        candidates: Sequence[Candidate],
        labels: Labels,
        lease: Lease,
        *,
        with_mass: bool = False,
        partial: bool = False,
    ) -> Generator[None, None, Scores]:
        """Score candidates behind a prefix. partial: where time runs out, return the first ones that were done."""
        ...


def size_of(candidate: Candidate) -> int:
    """Tokens of a candidate with its questions."""
    return len(candidate.body) + sum(map(len, candidate.questions))


def chunks(candidates: Sequence[Candidate], max_tokens: int) -> Generator[Sequence[Candidate], None, None]:
    """Yield runs of candidates of at most so many tokens, and of one candidate at least."""
    start, used = 0, 0
    for place, candidate in enumerate(candidates):
        size = size_of(candidate)
        if place > start and used + size > max_tokens:
            yield candidates[start:place]
            start, used = place, 0
        used += size
    if start < len(candidates):
        yield candidates[start:]


def join_scores(parts: Sequence[Scores], num_questions: int) -> Scores:
    """The scores of chunks as those of one pass."""
    masses = [part.label_mass_NQ for part in parts if part.label_mass_NQ is not None]
    empty = np.zeros((0, num_questions), np.float32)
    return Scores(
        score_NQ=np.concatenate([part.score_NQ for part in parts]) if parts else empty,
        label_mass_NQ=np.concatenate(masses) if masses else None,
        num_tokens=sum(part.num_tokens for part in parts),
    )


class LocalBackend:
    """A decoder in this process, with the prefixes it has read."""

    name = "local"

    def __init__(self, scorer: Scorer, cache: PrefixCache) -> None:
        self.scorer = scorer
        self.cache = cache
        self.vocab_size = scorer.config.vocab_size
        self.max_tokens = scorer.config.max_position_embeddings

    def unread(self, prefix: Sequence[int]) -> int:
        held = self._held(prefix)
        return len(prefix) - (0 if held is None else len(held))

    def prefill(self, prefix: Sequence[int], lease: Lease) -> Generator[None, None, None]:
        yield from self._read(prefix, lease)

    def score(
        self,
        prefix: Sequence[int],
        candidates: Sequence[Candidate],
        labels: Labels,
        lease: Lease,
        *,
        with_mass: bool = False,
        partial: bool = False,
    ) -> Generator[None, None, Scores]:
        read = yield from self._read(prefix, lease)
        done: list[Scores] = []
        for chunk in chunks(candidates, lease.chunk_tokens()):
            if done:
                yield
            if partial and done and not lease.fits(sum(map(size_of, chunk))):
                break
            try:
                scores = self.scorer.score(read, chunk, labels, with_mass=with_mass, stop=lease.stopped)
            except Stopped:
                if partial and done:
                    break
                raise
            lease.done(scores.num_tokens)
            done.append(scores)
        return join_scores(done, len(candidates[0].questions) if candidates else 0)

    def _held(self, prefix: Sequence[int]) -> Prefix | None:
        held = self.cache.get(self.cache.key_of(prefix))
        return self.cache.longest(prefix) if held is None else held

    def _read(self, tokens: Sequence[int], lease: Lease) -> Generator[None, None, Prefix]:
        read = self._held(tokens)
        first = True
        while read is None or len(read) < len(tokens):
            if not first:
                yield
            start = 0 if read is None else len(read)
            new = tokens[start : start + lease.chunk_tokens()]
            read = self.scorer.prefill(new, onto=read, stop=lease.stopped)
            lease.done(len(new))
            first = False
        whole = read
        return self.cache.obtain(tokens, lambda rest, onto: whole)

"""The LLM ranker without HTTP and without storage: members and items in, scores out.

Texts are made, and what they cost is known, before anything is queued; what the model computes its scheduler runs.
"""

# n = candidates, m = candidates that are scored, Q = questions

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.data.state import UserState
from models.decoder.blend import Blend, Weights, bucket_of
from models.decoder.scoring import Candidate, Scores
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.verbalizer import BudgetError, Prompt, Verbalizer
from models.ranking.calibration import Isotonic
from services.llm.backend import Backend, size_of
from services.llm.calls import Answered, Asked, NotAsked, RerankCall, Reranking, ScoreCall, TokensCall
from services.llm.items import ItemAttributes, Numbers
from services.llm.rows import check_length, check_tokens, pairs_of, probability_of_first, split
from services.llm.scheduler import Lease, Refused, Scheduler
from services.llm.telling import Teller
from services.retrieval.engine import ItemChange

T = TypeVar("T")

ROOM_SHARE = 0.5
"""Of what there is time for, the prompt may take; the rest is for candidates."""
ROOM_STEP = 64
"""Tokens by which a prompt for which there is little time is longer or shorter: alike ones are found again."""
READ_LATER_S = 10.0
SURE_SHARE = 0.75
"""Of the tokens that items have had of late, new ones take at least so many."""
MASS_EVERY = 50
"""Of so many rerankings one says its label mass: it takes the whole vocabulary matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedLlm:
    """A model with all that its answers depend on: one object, so that no answer mixes two."""

    version: str
    tokenizer: Tokenizer
    verbalizers: Mapping[str, Verbalizer]
    """By task. The first question of the first one is the ranker's."""
    calibration: Mapping[str, Isotonic]
    """By "task.question"; a question without a map is not calibrated."""
    blend: Blend
    backend: Backend

    @property
    def ranker(self) -> Verbalizer:
        """The task that reranks."""
        return next(iter(self.verbalizers.values()))

    @property
    def action(self) -> str:
        """The action that the ranker's question is about."""
        action = self.ranker.task.questions[0].action
        if action is None:
            raise ValueError(f"the first question of task {self.ranker.task.name!r} is not about an action")
        return action

    def versions(self, verbalizer: Verbalizer) -> dict[str, str]:
        """What an answer of a task was made with."""
        return {"llm": self.version, "prompt": f"{verbalizer.task.name}/{verbalizer.version}"}


class LlmEngine:
    """One model over the items' texts. Safe to call from any thread; nothing here waits for the model."""

    def __init__(
        self,
        served: ServedLlm,
        items: ItemAttributes,
        numbers: Numbers,
        scheduler: Scheduler,
        *,
        max_candidates: int,
        max_prompt_tokens: int,
        note_mass: Callable[[float], None] = lambda _: None,
    ) -> None:
        """note_mass: is told how likely a label word was at all; far below 1 the model has not understood."""
        self.items = items
        self.teller = Teller(items, numbers, max_prompt_tokens)
        self.scheduler = scheduler
        self.max_candidates = max_candidates
        self._served = served
        self._note_mass = note_mass
        self._lock = Lock()
        self._reading: Counter[tuple[int, ...]] = Counter()
        self._rerankings = itertools.count(1)
        self._item_tokens = 16.0

    @property
    def served(self) -> ServedLlm:
        """The model that the next question is answered with."""
        return self._served

    def replace(self, served: ServedLlm) -> None:
        """Answer with another model from the next question on; questions under way end with theirs."""
        self._served = served

    def apply_items(self, changes: Sequence[ItemChange]) -> None:
        """Take new, changed and deleted items in; texts are made of what an item is when it is asked about."""
        self.items.apply(changes)

    def check_room(self, num_items: int, deadline_s: float) -> None:
        """Raise Refused where so many items would certainly not be done in time: before their texts are made."""
        self.scheduler.check_room(int(SURE_SHARE * self._item_tokens * (num_items + 1)), deadline_s)

    def prefill(self, user: UserState, now_ms: int, deadline_s: float) -> Future[None]:
        """Read a member's prompt ahead of the candidates. Raises Refused, BudgetError."""
        served = self._served
        if not self._weights(served, user).score > 0.0:
            return _resolved(None)
        self.check_room(1, deadline_s)
        tokens = self._chosen(served, user, now_ms, deadline_s).tokens
        unread = self._unread(served, tokens)
        return self._read(served, tokens, unread, deadline_s) if unread else _resolved(None)

    def rerank(self, call: RerankCall, deadline_s: float) -> Future[Reranking]:
        """Score as many of the first candidates as there is time for.

        Where time turns out shorter than it looked, what was scored until then is the answer.
        Raises Refused where there is no time for one, BudgetError.
        """
        served = self._served
        verbalizer, weights = served.ranker, self._weights(served, call.user)

        def answer(scores: NDArray[np.float32]) -> Reranking:
            return Reranking(scores=scores, action=served.action, weights=weights, versions=served.versions(verbalizer))

        if not weights.score > 0.0 or not len(call.keys):
            return _resolved(answer(np.zeros(0, np.float32)))
        self.check_room(0, deadline_s)
        prompt = self._chosen(served, call.user, call.now_ms, deadline_s)
        tokens = prompt.tokens
        rows = [
            self.teller.candidate(verbalizer, Asked(key=key, attributes={}), call.signals[row], call.now_ms, prompt)
            for row, key in enumerate(call.keys[: self.max_candidates].tolist())
        ]
        self._note_sizes(rows)
        with_mass = next(self._rerankings) % MASS_EVERY == 0

        def work(lease: Lease) -> Generator[None, None, Reranking]:
            scores = yield from served.backend.score(
                tokens, chosen, verbalizer.labels, lease, with_mass=with_mass, partial=True
            )
            self._note(scores)
            return answer(scores.score_NQ[:, 0])

        ends = self._unread(served, tokens) + np.cumsum([size_of(row) for row in rows])
        while True:
            depth = int(np.searchsorted(ends, self.scheduler.room(deadline_s), side="right"))
            chosen = rows[: max(1, depth)]
            try:
                return self.scheduler.submit(work, int(ends[len(chosen) - 1]), deadline_s, least=int(ends[0]))
            except Refused:
                # With no room for one it is the scheduler that says why; else somebody came between, and took some.
                if depth < 2:
                    raise
                rows = rows[: depth // 2]
                ends = ends[: len(rows)]

    def score(self, call: ScoreCall, deadline_s: float) -> Future[Answered]:
        """Answer every question of a task about every item. Raises NotAsked, Refused."""
        served = self._served
        verbalizer = self._verbalizer(served, call.task)
        try:
            prompt = self.teller.prompt(verbalizer, call.user, call.told, call.now_ms, served.backend.max_tokens)
        except BudgetError as error:
            raise NotAsked("/member", str(error)) from None
        tokens = prompt.tokens
        rows = [self.teller.candidate(verbalizer, item, None, call.now_ms, prompt) for item in call.items]
        check_length(served.backend, len(tokens), rows)
        self._note_sizes(rows)

        def work(lease: Lease) -> Generator[None, None, Answered]:
            scores = yield from served.backend.score(tokens, rows, verbalizer.labels, lease, with_mass=call.with_mass)
            self._note(scores)
            return _answered(served, verbalizer, prompt, rows, scores)

        return self.scheduler.submit(work, self._unread(served, tokens) + sum(map(size_of, rows)), deadline_s)

    def score_tokens(self, call: TokensCall, deadline_s: float) -> Future[NDArray[np.float64]]:
        """Return f64[n]: probability of the first label after each row of tokens. Raises NotAsked, Refused."""
        served = self._served
        groups = split(call)
        check_tokens(call, served.backend.vocab_size)
        for group in groups:
            check_length(served.backend, len(group.prefix), group.rows)
        pairs = pairs_of(call)

        def work(lease: Lease) -> Generator[None, None, NDArray[np.float64]]:
            first = np.zeros(len(call.items))
            for group in groups:
                odds = []
                for labels in pairs:
                    odds.append(
                        (
                            yield from served.backend.score(
                                group.prefix, group.rows, labels, lease, with_mass=not call.softmax
                            )
                        )
                    )
                first[group.places] = probability_of_first(call, odds)
            return first

        cost = sum(self._unread(served, group.prefix) + len(pairs) * group.num_tokens for group in groups)
        return self.scheduler.submit(work, cost, deadline_s)

    def _weights(self, served: ServedLlm, user: UserState) -> Weights:
        return served.blend.weights[int(bucket_of(np.array(len(user.history))))]

    def _verbalizer(self, served: ServedLlm, task: str | None) -> Verbalizer:
        if task is None:
            return served.ranker
        found = served.verbalizers.get(task)
        if found is None:
            near = difflib.get_close_matches(task, served.verbalizers, 1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(served.verbalizers)}"
            raise NotAsked("/task", f"no task {task!r}; {hint}", task)
        return found

    def _unread(self, served: ServedLlm, tokens: tuple[int, ...]) -> int:
        """Tokens of a prompt that are still to be queued: not those that are held, or that another's work will read."""
        return 0 if self._reading[tokens] > 0 else served.backend.unread(tokens)

    def _forget(self, tokens: tuple[int, ...]) -> None:
        with self._lock:
            self._reading[tokens] -= 1
            if self._reading[tokens] <= 0:
                del self._reading[tokens]

    def _note_sizes(self, rows: Sequence[Candidate]) -> None:
        mean = sum(map(size_of, rows)) / len(rows)
        self._item_tokens += 0.1 * (mean - self._item_tokens)

    def _note(self, scores: Scores) -> None:
        if scores.label_mass_NQ is not None and scores.label_mass_NQ.size:
            self._note_mass(float(scores.label_mass_NQ.mean()))

    def _read(
        self, served: ServedLlm, tokens: tuple[int, ...], unread: int, deadline_s: float, *, idle: bool = False
    ) -> Future[None]:
        def work(lease: Lease) -> Generator[None, None, None]:
            yield from served.backend.prefill(tokens, lease)

        future = self.scheduler.submit(work, unread, deadline_s, idle=idle)
        if not idle:  # what is read while there is time cannot be counted on
            with self._lock:
                self._reading[tokens] += 1
            future.add_done_callback(lambda _: self._forget(tokens))
        return future

    def _chosen(self, served: ServedLlm, user: UserState, now_ms: int, deadline_s: float) -> Prompt:
        """The prompt that a request's candidates are read behind: the task's own, or where there is no time to read
        that, one with as much of the history as there is; then the whole is read when there is nothing else to do,
        and is there for the member's next request. One choice per request."""
        verbalizer = served.ranker
        key = self.teller.key(verbalizer, user, None, now_ms) + b"chosen"
        found = self.teller.remembered(key)
        if found is not None:
            return found
        chosen = self.teller.prompt(verbalizer, user, None, now_ms, served.backend.max_tokens)
        unread = self._unread(served, chosen.tokens)
        room = int(self.scheduler.room(deadline_s) * ROOM_SHARE) // ROOM_STEP * ROOM_STEP
        if unread > room:
            tokens = chosen.tokens
            # A favour to the next request: where there is too much to do, it is not done.
            with contextlib.suppress(Refused):
                self._read(served, tokens, unread, self.scheduler.clock() + READ_LATER_S, idle=True)
            # With no room for instruction and member either, it is the scheduler that says why.
            with contextlib.suppress(BudgetError):
                chosen = self.teller.make(verbalizer, self.teller.interactions(verbalizer, user), user, now_ms, room)
        return self.teller.remember(key, chosen)


def _resolved(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _answered(
    served: ServedLlm, verbalizer: Verbalizer, prompt: Prompt, rows: Sequence[Candidate], scores: Scores
) -> Answered:
    names = [f"{verbalizer.task.name}.{question}" for question in verbalizer.questions]
    maps = [served.calibration.get(name) for name in names]
    logits = np.stack(
        [
            scores.score_NQ[:, column].astype(np.float64) if fitted is None else fitted(scores.score_NQ[:, column])
            for column, fitted in enumerate(maps)
        ],
        axis=1,
    )
    return Answered(
        task=verbalizer.task.name,
        questions=verbalizer.questions,
        scores=scores.score_NQ,
        probabilities=(1.0 / (1.0 + np.exp(-np.clip(logits, -30.0, 30.0)))).astype(np.float32),
        label_mass=scores.label_mass_NQ,
        calibrated=all(fitted is not None for fitted in maps),
        prompt_tokens=len(prompt.tokens),
        item_tokens=np.array([size_of(row) for row in rows], np.int64),
        num_entries=prompt.num_entries,
        dropped=asdict(prompt.dropped),
        versions=served.versions(verbalizer),
    )

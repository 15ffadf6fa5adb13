"""The LLM ranker without HTTP and without storage: members and items in, scores out.

Texts are made, and what they cost is known, before anything is queued; what the model computes its scheduler runs.
"""

# n = candidates, m = candidates that are scored, Q = questions

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from models.data.state import UserState
from models.decoder.blend import Blend, Weights, bucket_of
from models.decoder.scoring import Candidate, Labels, Scores
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.task import Interaction
from models.decoder.verbalizer.verbalizer import BudgetError, Prompt, Verbalizer
from models.ranking.calibration import Isotonic
from services.llm.backend import Backend, size_of
from services.llm.calls import Answered, Asked, NotAsked, RerankCall, Reranking, ScoreCall, TokensCall, Told
from services.llm.items import ItemAttributes, Numbers
from services.llm.scheduler import Lease, Scheduler
from services.retrieval.engine import ItemChange

T = TypeVar("T")

MAX_PROMPTS = 256
"""Prompts that are remembered: the prefill of a request writes one, and its scoring reads it."""
PROMPT_SHARE = 0.75
"""Of the positions that the decoder has; the candidates need some behind it."""
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
        self.numbers = numbers
        self.scheduler = scheduler
        self.max_candidates = max_candidates
        self._served = served
        self._max_prompt_tokens = max_prompt_tokens
        self._note_mass = note_mass
        self._lock = Lock()
        self._prompts: OrderedDict[bytes, Prompt] = OrderedDict()
        self._reading: Counter[tuple[int, ...]] = Counter()
        self._rerankings = itertools.count(1)

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

    def prefill(self, user: UserState, now_ms: int, deadline_s: float) -> Future[None]:
        """Read a member's prompt ahead of the candidates. Raises Refused, BudgetError."""
        served = self._served
        if not self._weights(served, user).score > 0.0:
            return _resolved(None)
        tokens = self._prompt(served, served.ranker, user, None, now_ms).tokens
        unread = self._unread(served, tokens)
        if not unread:
            return _resolved(None)

        def work(lease: Lease) -> Generator[None, None, None]:
            yield from served.backend.prefill(tokens, lease)

        future = self.scheduler.submit(work, unread, deadline_s)
        with self._lock:
            self._reading[tokens] += 1
        future.add_done_callback(lambda _: self._forget(tokens))
        return future

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
        prompt = self._prompt(served, verbalizer, call.user, None, call.now_ms)
        tokens = prompt.tokens
        rows = [
            self._candidate(verbalizer, Asked(key=key, attributes={}), call.signals[row], call.now_ms, prompt)
            for row, key in enumerate(call.keys[: self.max_candidates].tolist())
        ]
        with_mass = next(self._rerankings) % MASS_EVERY == 0

        def work(lease: Lease) -> Generator[None, None, Reranking]:
            scores = yield from served.backend.score(
                tokens, chosen, verbalizer.labels, lease, with_mass=with_mass, partial=True
            )
            self._note(scores)
            return answer(scores.score_NQ[:, 0])

        unread = self._unread(served, tokens)
        ends = unread + np.cumsum([size_of(row) for row in rows])
        depth = int(np.searchsorted(ends, self.scheduler.room(deadline_s), side="right"))
        # With no room at all it is the scheduler that says why.
        chosen = rows[: max(1, depth)]
        return self.scheduler.submit(work, int(ends[len(chosen) - 1]), deadline_s, least=int(ends[0]))

    def score(self, call: ScoreCall, deadline_s: float) -> Future[Answered]:
        """Answer every question of a task about every item. Raises NotAsked, Refused."""
        served = self._served
        verbalizer = self._verbalizer(served, call.task)
        try:
            prompt = self._prompt(served, verbalizer, call.user, call.told, call.now_ms)
        except BudgetError as error:
            raise NotAsked("/member", str(error)) from None
        tokens = prompt.tokens
        rows = [self._candidate(verbalizer, item, None, call.now_ms, prompt) for item in call.items]
        _check_length(served.backend, len(tokens), rows)

        def work(lease: Lease) -> Generator[None, None, Answered]:
            scores = yield from served.backend.score(tokens, rows, verbalizer.labels, lease, with_mass=call.with_mass)
            self._note(scores)
            return _answered(served, verbalizer, prompt, rows, scores)

        return self.scheduler.submit(work, self._unread(served, tokens) + sum(map(size_of, rows)), deadline_s)

    def score_tokens(self, call: TokensCall, deadline_s: float) -> Future[NDArray[np.float64]]:
        """Return f64[n]: probability of the first label after each row of tokens. Raises NotAsked, Refused."""
        served = self._served
        groups = _split(call)
        _check_tokens(call, served.backend.vocab_size)
        for group in groups:
            _check_length(served.backend, len(group.prefix), group.rows)
        pairs = _pairs(call)

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
                first[group.places] = _probability_of_first(call, odds)
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

    def _note(self, scores: Scores) -> None:
        if scores.label_mass_NQ is not None and scores.label_mass_NQ.size:
            self._note_mass(float(scores.label_mass_NQ.mean()))

    def _prompt(
        self, served: ServedLlm, verbalizer: Verbalizer, user: UserState, told: Sequence[Told] | None, now_ms: int
    ) -> Prompt:
        history = user.history
        digest = hashlib.blake2b(digest_size=16)
        for part in (
            verbalizer.version.encode(),
            orjson.dumps([user.profile, now_ms, id(self.numbers.table), len(history)], default=str),
            b"" if told is None else orjson.dumps([asdict(one) for one in told], default=str),
            *(column.tobytes() for column in (history.keys, history.actions, history.ts_ms)),
        ):
            digest.update(part)
        with self._lock:
            found = self._prompts.get(digest.digest())
        if found is not None:
            return found
        interactions = self._interactions(verbalizer, user) if told is None else self._told(verbalizer, told)
        room = int(served.backend.max_tokens * PROMPT_SHARE)
        budget = min(verbalizer.task.history.max_tokens, self._max_prompt_tokens, room)
        prompt = verbalizer.prefix(user.profile, interactions, now_ms, budget)
        with self._lock:
            self._prompts[digest.digest()] = prompt
            while len(self._prompts) > MAX_PROMPTS:
                self._prompts.popitem(last=False)
        return prompt

    def _interactions(self, verbalizer: Verbalizer, user: UserState) -> list[Interaction]:
        """The user's history; of items that are gone nothing can be told. Their numbers are today's, not those of
        then, which nobody keeps."""
        history, told = user.history, []
        order = np.argsort(history.ts_ms, kind="stable")
        columns = (history.keys[order], history.actions[order], history.ts_ms[order])
        for key, actions, ts_ms in zip(*(column.tolist() for column in columns), strict=True):
            attributes = self.items.get(key)
            if attributes is not None:
                standing = self.numbers.standing(key, verbalizer.task.numbers)
                told.append(Interaction(attributes, actions, ts_ms, standing))
        return told

    def _told(self, verbalizer: Verbalizer, told: Sequence[Told]) -> list[Interaction]:
        numbers = verbalizer.task.numbers
        return [
            Interaction(one.attributes, one.actions, one.ts_ms, self.numbers.standing(one.key, numbers))
            for one in sorted(told, key=lambda one: one.ts_ms)
        ]

    def _candidate(
        self,
        verbalizer: Verbalizer,
        item: Asked,
        signals_S: NDArray[np.float64] | None,
        now_ms: int,
        prompt: Prompt,
    ) -> Candidate:
        """An item in tokens. Its words were mostly encoded before: the verbalizer remembers each of them."""
        attributes = item.attributes
        if not attributes and item.key is not None:
            attributes = self.items.get(item.key) or {}
        standing = self.numbers.standing(item.key, verbalizer.task.numbers, signals_S)
        return verbalizer.candidate(attributes, standing, now_ms, prompt.newest_ms)


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


def _check_length(backend: Backend, num_prefix: int, rows: Sequence[Candidate]) -> None:
    for place, row in enumerate(rows):
        longest = num_prefix + len(row.body) + max(map(len, row.questions))
        if longest > backend.max_tokens:
            raise NotAsked(
                f"/items/{place}", f"prompt and item have {longest} tokens; expected at most {backend.max_tokens}"
            )


def _check_tokens(call: TokensCall, vocab_size: int) -> None:
    rows = [("/query", call.prefix), ("/label_token_ids", call.labels)]
    rows += [(f"/items/{place}", item) for place, item in enumerate(call.items)]
    for pointer, tokens in rows:
        wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise NotAsked(pointer, f"token {wrong} is out of the vocabulary; expected 0 to {vocab_size - 1}", wrong)


@dataclass(frozen=True, slots=True)
class _Shared:
    """Rows of a call that begin alike."""

    prefix: tuple[int, ...]
    places: list[int]
    """Of the rows, among the call's items."""
    rows: list[Candidate]

    @property
    def num_tokens(self) -> int:
        return sum(map(size_of, self.rows))


def _split(call: TokensCall) -> list[_Shared]:
    """The call's rows by what they share: the query, or where the item comes first, one token."""
    if not call.item_first and len(call.prefix) and all(call.items):
        rows = [Candidate([], [list(item)]) for item in call.items]
        return [_Shared(tuple(call.prefix), list(range(len(rows))), rows)]
    shared: dict[tuple[int, ...], _Shared] = {}
    for place, item in enumerate(call.items):
        whole = [*item, *call.prefix] if call.item_first else [*call.prefix, *item]
        if len(whole) < 2:
            raise NotAsked(f"/items/{place}", f"query and item have {len(whole)} tokens; expected two at least")
        # An item without tokens asks what follows on the query: the query's last token is then not shared.
        length = 1 if call.item_first else max(1, len(call.prefix) - 1)
        group = shared.setdefault(tuple(whole[:length]), _Shared(tuple(whole[:length]), [], []))
        group.places.append(place)
        group.rows.append(Candidate([], [whole[length:]]))
    return list(shared.values())


def _pairs(call: TokensCall) -> list[Labels]:
    """What the decoder is asked, two labels at a time, so that the first one's probability follows."""
    first, others = call.labels[0], call.labels[1:]
    if not call.softmax:
        return [Labels(first, first)]
    return [Labels(first, other) for other in others] or [Labels(first, first)]


def _probability_of_first(call: TokensCall, odds: Sequence[Scores]) -> NDArray[np.float64]:
    if not call.softmax:
        mass = odds[0].label_mass_NQ
        assert mass is not None
        return 0.5 * mass[:, 0].astype(np.float64)  # the one token was counted as both labels
    if len(call.labels) == 1:
        return np.ones(len(odds[0].score_NQ))
    against = sum(np.exp(-scores.score_NQ[:, 0].astype(np.float64)) for scores in odds)
    return np.asarray(1.0 / (1.0 + against))

"""Members and items in words: prompts that stay as they are while a history grows, and candidates behind them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from threading import Lock

import numpy as np
import orjson
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from models.data.state import UserState
from models.decoder.scoring import Candidate
from models.decoder.verbalizer.task import Interaction
from models.decoder.verbalizer.verbalizer import Prompt, Verbalizer
from services.llm.calls import Asked, Told
from services.llm.items import ItemAttributes, Numbers

MAX_PROMPTS = 256
"""Prompts that are remembered: the prefill of a request makes one, and its scoring finds it."""
PROMPT_SHARE = 0.75
"""Of the positions that the decoder has; the candidates need some behind it."""
ANCHOR_EVERY = 4
"""One of so many entries may be the first that is told."""
MAX_SKIPPED = 6
"""Entries that are given up at most for that."""


class Teller:
    """Makes texts of what is known of members and items. Safe to share between threads."""

    def __init__(self, items: ItemAttributes, numbers: Numbers, max_tokens: int) -> None:
        """max_tokens: of a prompt."""
        self.items = items
        self.numbers = numbers
        self._max_tokens = max_tokens
        self._lock = Lock()
        self._prompts: OrderedDict[bytes, Prompt] = OrderedDict()

    def prompt(
        self, verbalizer: Verbalizer, user: UserState, told: Sequence[Told] | None, now_ms: int, max_tokens: int
    ) -> Prompt:
        """The task's own prompt, as long as it may be.  told: in place of the history.  max_tokens: of all."""
        key = self.key(verbalizer, user, told, now_ms)
        found = self.remembered(key)
        if found is not None:
            return found
        interactions = self.interactions(verbalizer, user) if told is None else self._told(verbalizer, told)
        budget = min(verbalizer.task.history.max_tokens, self._max_tokens, int(max_tokens * PROMPT_SHARE))
        return self.remember(key, self.make(verbalizer, interactions, user, now_ms, budget))

    def make(
        self, verbalizer: Verbalizer, interactions: Sequence[Interaction], user: UserState, now_ms: int, budget: int
    ) -> Prompt:
        """A prompt of at most `budget` tokens; one that cannot tell everything begins at an anchor."""
        prompt = verbalizer.prefix(user.profile, interactions, now_ms, budget)
        start = anchor(verbalizer, interactions, prompt)
        if not start:
            return prompt
        anchored = verbalizer.prefix(user.profile, interactions[start:], now_ms, budget)
        skipped = prompt.num_entries - anchored.num_entries
        return replace(anchored, dropped=replace(prompt.dropped, budget=prompt.dropped.budget + skipped))

    def key(self, verbalizer: Verbalizer, user: UserState, told: Sequence[Told] | None, now_ms: int) -> bytes:
        history = user.history
        digest = hashlib.blake2b(digest_size=16)
        for part in (
            verbalizer.version.encode(),
            orjson.dumps([user.profile, now_ms, id(self.numbers.table), len(history)], default=str),
            b"" if told is None else orjson.dumps([asdict(one) for one in told], default=str),
            *(column.tobytes() for column in (history.keys, history.actions, history.ts_ms)),
        ):
            digest.update(part)
        return digest.digest()

    def remembered(self, key: bytes) -> Prompt | None:
        with self._lock:
            return self._prompts.get(key)

    def remember(self, key: bytes, prompt: Prompt) -> Prompt:
        with self._lock:
            self._prompts[key] = prompt
            while len(self._prompts) > MAX_PROMPTS:
                self._prompts.popitem(last=False)
        return prompt

    def interactions(self, verbalizer: Verbalizer, user: UserState) -> list[Interaction]:
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

    def candidate(
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


def anchor(verbalizer: Verbalizer, interactions: Sequence[Interaction], prompt: Prompt) -> int:
    """Return the place of the interaction that a prompt should begin with; 0 where it tells everything.

    A history that no longer fits loses its oldest entry with every new one, and a prompt with another beginning has to
    be read anew. So it begins at an entry that is chosen by a hash of it: the next one of those is some entries on, and
    until then the prompt only grows.
    """
    if not prompt.num_entries or not prompt.dropped.max_entries + prompt.dropped.budget:
        return 0
    if not verbalizer.style.chained or verbalizer.task.history.prefer != "newest":
        return 0
    mask = sum(1 << verbalizer.schema.bit(action) for action in verbalizer.task.history.actions)
    told = [place for place, one in enumerate(interactions) if not mask or one.actions & mask][-prompt.num_entries :]
    for place in told[:MAX_SKIPPED]:
        one = interactions[place]
        told_of = f"{one.ts_ms} {sorted(one.attributes.items(), key=lambda pair: pair[0])}"
        if xxh3_64_intdigest(told_of.encode(errors="replace")) % ANCHOR_EVERY == 0:
            return place
    return told[0]

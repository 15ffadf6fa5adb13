"""Prompts that were read before, kept by how recently they were used, up to a number of bytes.

A member's prompt mostly grows at its end, and prompts of one task begin alike. So a prompt that is not held itself may
begin as one that is: then only what follows is read. Beginnings are found in steps of BLOCK_TOKENS, by hash, and
confirmed token by token.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from models.decoder.scoring import Prefix

BLOCK_TOKENS = 32


@dataclass(slots=True)
class Counters:
    hits: int = 0
    """Prompts that were held as they are."""
    partial_hits: int = 0
    """Prompts of which a beginning was."""
    misses: int = 0
    waits: int = 0
    """Prompts that another thread was just reading."""
    evictions: int = 0
    tokens_reused: int = 0
    tokens_read: int = 0


@dataclass(slots=True)
class _Entry:
    prefix: Prefix
    num_bytes: int
    blocks: list[bytes] = field(default_factory=list)


class PrefixCache:
    """Prefixes of one scorer, at most `max_bytes` of them. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}; expected 0 or more")
        self.max_bytes = max_bytes
        self._lock = Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the least recently used first
        self._blocks: dict[bytes, list[bytes]] = {}  # hash of a beginning -> keys of the entries that begin so
        self._reading: dict[bytes, Future[Prefix]] = {}
        self._num_bytes = 0
        self._counters = Counters()

    @staticmethod
    def key_of(tokens: Sequence[int]) -> bytes:
        """The key that a prompt has where the caller has no key of its own."""
        return hashlib.blake2b(np.asarray(tokens, dtype=np.int64).tobytes(), digest_size=16).digest()

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def counters(self) -> Counters:
        """Return a copy of what was counted so far."""
        with self._lock:
            found = self._counters
            return Counters(*(getattr(found, name) for name in Counters.__slots__))

    def get(self, key: bytes) -> Prefix | None:
        """Return what is held under the key, now the most recently used."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.prefix

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Hold a prefix, in place of what the key held; the least recently used ones go. Larger than all: not held."""
        entry = _Entry(prefix, prefix.num_bytes, list(_beginnings(prefix.tokens)))
        with self._lock:
            self._drop(key)
            if entry.num_bytes > self.max_bytes:
                return
            while self._num_bytes + entry.num_bytes > self.max_bytes:
                self._drop(next(iter(self._entries)))
                self._counters.evictions += 1
            self._entries[key] = entry
            self._num_bytes += entry.num_bytes
            for block in entry.blocks:
                self._blocks.setdefault(block, []).append(key)

    def longest(self, tokens: Sequence[int]) -> Prefix | None:
        """Return the longest beginning of the prompt that is held, by itself or as the beginning of another prompt.

        Beginnings shorter than BLOCK_TOKENS are not found.
        """
        wanted = tuple(tokens)
        blocks = list(_beginnings(wanted))
        with self._lock:
            key = next((self._blocks[block][-1] for block in reversed(blocks) if block in self._blocks), None)
            if key is None:
                return None
            self._entries.move_to_end(key)
            prefix = self._entries[key].prefix
        same = np.asarray(prefix.tokens[: len(wanted)]) == np.asarray(wanted[: len(prefix)])
        length = len(same) if same.all() else int(same.argmin())
        return prefix.head(length) if length >= BLOCK_TOKENS else None

    def obtain(self, tokens: Sequence[int], prefill: Callable[[Sequence[int], Prefix | None], Prefix]) -> Prefix:
        """Return the prompt's prefix, held afterwards, reading what is not held by `prefill(rest, onto)`.

        Threads that ask for a prompt while another reads it wait for that one; if it fails they read it themselves.
        """
        wanted = tuple(tokens)
        key = self.key_of(wanted)
        while True:
            held = self.get(key)
            with self._lock:
                if held is not None:
                    self._counters.hits += 1
                    self._counters.tokens_reused += len(wanted)
                    return held
                reading = self._reading.get(key)
                if reading is None:
                    mine: Future[Prefix] = Future()
                    self._reading[key] = mine
                    break
                self._counters.waits += 1
            if reading.exception() is None:
                return reading.result()
        return self._read(wanted, key, mine, prefill)

    def _read(
        self,
        tokens: tuple[int, ...],
        key: bytes,
        mine: Future[Prefix],
        prefill: Callable[[Sequence[int], Prefix | None], Prefix],
    ) -> Prefix:
        try:
            onto = self.longest(tokens)
            reused = 0 if onto is None else len(onto)
            # A prompt that another one begins with needs no reading, but its head would hold the other's bytes.
            prefix = onto if onto is not None and reused == len(tokens) else prefill(tokens[reused:], onto)
            if reused < len(tokens):
                self.put(key, prefix)
        except BaseException as error:
            with self._lock:
                del self._reading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._counters.misses += not reused
            self._counters.partial_hits += bool(reused)
            self._counters.tokens_reused += reused
            self._counters.tokens_read += len(tokens) - reused
            del self._reading[key]
        mine.set_result(prefix)
        return prefix

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._num_bytes -= entry.num_bytes
        for block in entry.blocks:
            keys = self._blocks[block]
            keys.remove(key)
            if not keys:
                del self._blocks[block]


def _beginnings(tokens: Sequence[int]) -> Iterator[bytes]:
    """Yield the hash of the first BLOCK_TOKENS tokens, of twice as many, and so on."""
    running = hashlib.blake2b(digest_size=16)
    row = np.asarray(tokens, dtype=np.int64)
    for stop in range(BLOCK_TOKENS, len(row) + 1, BLOCK_TOKENS):
        running.update(row[stop - BLOCK_TOKENS : stop].tobytes())
        yield running.digest()

import threading

import pytest

from models.decoder.prefix_cache import BLOCK_TOKENS, PrefixCache
from models.decoder.scoring import Scorer
from tests.models.decoder.tiny import tiny_decoder

SCORER = Scorer(tiny_decoder())
TOKEN_BYTES = SCORER.prefill([1]).num_bytes
LONG = [place % 90 + 1 for place in range(3 * BLOCK_TOKENS)]


def read(rest, onto):
    return SCORER.prefill(rest, onto=onto)


def never(rest, onto):
    raise AssertionError(f"{len(rest)} tokens are read that are held")


def test_what_was_put_is_found_under_its_key_and_no_other():
    cache = PrefixCache(10**6)
    prefix = SCORER.prefill([1, 2, 3])
    cache.put(b"member 1", prefix)
    assert cache.get(b"member 1") is prefix and cache.get(b"member 2") is None
    assert PrefixCache.key_of([1, 2]) != PrefixCache.key_of([2, 1])
    assert PrefixCache.key_of((1, 2)) == PrefixCache.key_of([1, 2])


def test_the_least_recently_used_go_first():
    cache = PrefixCache(10 * TOKEN_BYTES)
    for name in (b"a", b"b", b"c"):
        cache.put(name, SCORER.prefill([1, 2, 3]))
    assert cache.get(b"a") is not None
    cache.put(b"d", SCORER.prefill([1, 2, 3, 4]))
    assert cache.get(b"b") is None and all(cache.get(name) for name in (b"a", b"c", b"d"))
    assert cache.num_bytes == 10 * TOKEN_BYTES and len(cache) == 3 and cache.counters().evictions == 1


def test_a_key_put_again_is_counted_once_and_too_large_a_prefix_is_not_held():
    cache = PrefixCache(4 * TOKEN_BYTES)
    cache.put(b"a", SCORER.prefill([1, 2, 3]))
    cache.put(b"a", SCORER.prefill([1, 2]))
    assert cache.num_bytes == 2 * TOKEN_BYTES
    cache.put(b"b", SCORER.prefill([1] * 5))
    assert cache.get(b"b") is None and cache.get(b"a") is not None
    cache.put(b"a", SCORER.prefill([1] * 5))
    assert cache.num_bytes == 0 and len(cache) == 0, "what the key held is out of date"


def test_a_prompt_that_grew_is_read_from_where_it_grew():
    cache = PrefixCache(10**7)
    first = cache.obtain(LONG, read)
    seen = []

    def watched(rest, onto):
        seen.append((list(rest), onto and onto.tokens))
        return read(rest, onto)

    grown = cache.obtain([*LONG, 7, 8], watched)
    assert seen == [([7, 8], first.tokens)] and grown.tokens == (*LONG, 7, 8)
    assert cache.obtain(LONG, never) is first
    assert cache.obtain([*LONG, 7, 8], never) is grown
    counted = cache.counters()
    assert (counted.misses, counted.partial_hits, counted.hits) == (1, 1, 2)
    assert counted.tokens_read == len(LONG) + 2


def test_prompts_that_begin_alike_share_their_beginning():
    cache = PrefixCache(10**7)
    cache.obtain(LONG, read)
    common = 2 * BLOCK_TOKENS + 5
    other = [*LONG[:common], 300, 301]
    found = cache.longest(other)
    assert found.tokens == tuple(LONG[:common]), "token by token past the last whole block"
    obtained = cache.obtain(other, read)
    assert obtained.tokens == tuple(other) and cache.counters().tokens_reused == common
    assert cache.longest([300, *LONG]) is None
    assert cache.longest(LONG[: BLOCK_TOKENS - 1]) is None
    assert cache.obtain(LONG[:BLOCK_TOKENS], never).tokens == tuple(LONG[:BLOCK_TOKENS])


def test_nothing_of_a_dropped_prompt_is_found():
    cache = PrefixCache(len(LONG) * TOKEN_BYTES)
    cache.put(b"a", SCORER.prefill(LONG))
    cache.put(b"b", SCORER.prefill([400 - 1, *LONG[1:]]))
    assert cache.longest(LONG) is None and cache.longest([399, *LONG[1:], 5]).tokens[0] == 399


def test_one_thread_reads_and_the_others_wait():
    cache = PrefixCache(10**7)
    began, go = threading.Event(), threading.Event()
    calls, found = [], []

    def slow(rest, onto):
        calls.append(len(rest))
        began.set()
        assert go.wait(10)
        return read(rest, onto)

    threads = [threading.Thread(target=lambda: found.append(cache.obtain(LONG, slow))) for _ in range(4)]
    threads[0].start()
    assert began.wait(10)
    for thread in threads[1:]:
        thread.start()
    while cache.counters().waits < 3:
        pass
    go.set()
    for thread in threads:
        thread.join(10)
    assert calls == [len(LONG)] and len(found) == 4 and all(prefix is found[0] for prefix in found)


def test_a_reader_that_fails_leaves_the_next_to_read():
    cache = PrefixCache(10**7)

    def fail(rest, onto):
        raise RuntimeError("no time left")

    with pytest.raises(RuntimeError, match="no time left"):
        cache.obtain(LONG, fail)
    assert cache.obtain(LONG, read).tokens == tuple(LONG)


def test_a_negative_size_is_named():
    with pytest.raises(ValueError, match="max_bytes is -1"):
        PrefixCache(-1)

"""Shared-prefix scoring timed: against itself without sharing, against other engines, against the processor's limit."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from kernels.cpu.product import linear
from models.decoder.checkpoint import read_decoder
from models.decoder.config import DecoderConfig
from models.decoder.linear import Precision
from models.decoder.scoring import Candidate, Labels, Scorer
from tests.bench.llm_peers import LlamaCpp, Peer, Transformers, UnsupportedError, vllm_peer
from tests.bench.record import Record

SHAPE = (512, 32, 20)
"""Tokens of the prompt, of an item on average, items."""
CURVE = [(128, 32, 20), (512, 16, 50), (512, 32, 20), (512, 128, 20), (2048, 32, 20), (2048, 32, 100)]
QUICK_CURVE = CURVE[:3]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
Say = Callable[[str], None]


def draw(shape: tuple[int, int, int], vocab_size: int, seed: int = 0) -> tuple[list[int], list[list[int]]]:
    """A prompt, and items of three quarters to five quarters of the mean length, of tokens that are no controls."""
    random = np.random.default_rng(seed)
    num_prompt, mean, num_items = shape
    lengths = np.linspace(mean * 0.75, mean * 1.25, num_items).round().astype(int)
    prompt, *items = (
        random.integers(100, vocab_size, size).tolist() for size in [num_prompt, *random.permutation(lengths)]
    )
    return prompt, items


def as_candidates(items: Sequence[Sequence[int]]) -> list[Candidate]:
    return [Candidate(item[:-4], [item[-4:]]) for item in items]


def measure(record: Record, folder: Path, labels: Labels, quick: bool, say: Say) -> None:
    decoder = read_decoder(folder)
    scorers = {}
    for precision in PRECISIONS:
        scorers[precision] = Scorer(decoder, precision)
    repeats = 7 if quick else 20
    _utilisation(record, scorers, labels, repeats)
    say("utilisation measured")
    for shape in QUICK_CURVE if quick else CURVE:
        _sharing(record, scorers["bf16"], labels, shape, 1 if quick else 4)
    say("curve measured")
    for precision in ("fp32", "bf16"):
        _compare(record, scorers[precision], folder, labels, 4 if quick else repeats)
    say("peers measured")


def prefill_flops(config: DecoderConfig, num_tokens: int) -> float:
    """Products and sums of reading a prompt; the last layer's keys and values are all that is read of it."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads * config.head_dim
    seen = num_tokens * (num_tokens + 1) / 2
    whole = (layers - 1) * (num_tokens * _layer_flops(config) + 4 * heads * seen)
    return whole + num_tokens * _key_value_flops(config)


def score_flops(config: DecoderConfig, num_prompt: int, sizes: Sequence[int]) -> float:
    """Products and sums of one question about each candidate of `sizes` tokens behind a prompt that was read."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads * config.head_dim
    tokens, rows = sum(sizes), len(sizes)
    seen = sum(size * num_prompt + size * (size + 1) / 2 for size in sizes)
    whole = (layers - 1) * (tokens * _layer_flops(config) + 4 * heads * seen)
    last = rows * (_layer_flops(config) - _key_value_flops(config)) + 4 * heads * sum(num_prompt + s for s in sizes)
    return whole + tokens * _key_value_flops(config) + last


def _layer_flops(config: DecoderConfig) -> float:
    attention = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    return 2 * config.hidden_size * (attention + 3 * config.intermediate_size)


def _key_value_flops(config: DecoderConfig) -> float:
    return 4 * config.hidden_size * config.num_key_value_heads * config.head_dim


def _utilisation(record: Record, scorers: dict[Precision, Scorer], labels: Labels, repeats: int) -> None:
    found = []
    for precision, scorer in scorers.items():
        config = scorer.config
        prompt, items = draw(SHAPE, config.vocab_size)
        candidates = as_candidates(items)
        prefix = scorer.prefill(prompt)
        flops = score_flops(config, len(prompt), [len(item) for item in items])
        peak = peak_flops(precision)
        seconds = _times(lambda s=scorer, p=prefix, c=candidates: s.score(p, c, labels), repeats)  # type: ignore[misc]
        peak = max(peak, peak_flops(precision))  # before and after: the machine may not have been ours alone
        record.add(f"{precision}: peak of products", peak / 1e9, "GFLOP/s")
        row = record.add_samples(f"{precision}: scoring, warm prefix", [1e3 * s for s in seconds], "ms", _named(SHAPE))
        record.add(f"{precision}: scoring, warm prefix, best", 1e3 * min(seconds), "ms", _named(SHAPE))
        prefill = _times(lambda s=scorer, p=prompt: s.prefill(p), max(3, repeats // 2))  # type: ignore[misc]
        record.add_samples(
            f"{precision}: reading the prompt", [1e3 * s for s in prefill], "ms", f"{len(prompt)} tokens"
        )
        record.add(f"{precision}: items a second, warm prefix", 1e3 * len(items) / row.value, "1/s", _named(SHAPE))
        used = flops / min(seconds) / peak
        record.add(f"{precision}: utilisation at the median", flops / statistics.median(seconds) / peak, "")
        record.figures[f"flops_utilisation_{precision}"] = used
        found.append(used)
    # At int8 attention and all between the products are still bf16: it is reported, and not part of the figure.
    record.figures["flops_utilisation"] = min(found[:2])


def peak_flops(precision: Precision) -> float:
    """The most of any product that can be had here: by oneDNN, MKL or torch's integer product, three shapes."""
    best = 0.0
    for rows, inputs, outputs in ((640, 576, 960), (640, 576, 3072), (2048, 2048, 2048)):
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        if precision == "int8":
            codes = [(tensor * 40).clamp(-127, 127).to(torch.int8) for tensor in (x, weight.T.contiguous())]
            runs = [lambda c=codes: torch._int_mm(*c)]  # type: ignore[misc]
        else:
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
            pair = (x.to(dtype), weight.to(dtype))
            runs = [lambda p=pair: linear(*p), lambda p=pair: p[0] @ p[1].T]  # type: ignore[misc]
        best = max(best, *(2.0 * rows * inputs * outputs / min(_times(run, 8)) for run in runs))
    return best


def _sharing(record: Record, scorer: Scorer, labels: Labels, shape: tuple[int, int, int], repeats: int) -> None:
    """Everything from a cold cache: the prompt once and then all items, against the prompt anew for every item."""
    config = scorer.config
    prompt, items = draw(shape, config.vocab_size)
    candidates = as_candidates(items)
    sizes = [len(item) for item in items]

    def share() -> None:
        scorer.score(scorer.prefill(prompt), candidates, labels)

    def repeat() -> None:
        for candidate in candidates:
            scorer.score(scorer.prefill(prompt), [candidate], labels)

    shared, naive = _times(share, 2 * repeats), _times(repeat, repeats)
    floor = prefill_flops(config, len(prompt)) + score_flops(config, len(prompt), sizes)
    wasted = sum(prefill_flops(config, len(prompt)) + score_flops(config, len(prompt), [size]) for size in sizes)
    gain = min(naive) / min(shared)
    note = f"{_named(shape)}; fewest possible by FLOPs {wasted / floor:.2f}"
    record.add(f"{scorer.precision}: shared prefix over naive", gain, "times", note)
    record.add(
        f"{scorer.precision}: shared prefix", 1e3 * min(shared), "ms", f"{_named(shape)}; {floor / 1e9:.0f} GFLOP"
    )
    record.add(f"{scorer.precision}: naive", 1e3 * min(naive), "ms", f"{_named(shape)}; {wasted / 1e9:.0f} GFLOP")
    if shape == SHAPE:
        record.figures["shared_prefix_vs_naive"] = gain


def _compare(record: Record, scorer: Scorer, folder: Path, labels: Labels, repeats: int) -> None:
    """All engines with a warm cache of the prompt; turn by turn, so that noise falls on all alike.

    Every turn has items of its own: an engine that keeps what it has read would answer the same ones from its cache.
    """
    prompt, items = draw(SHAPE, scorer.config.vocab_size)
    candidates, prefix = as_candidates(items), scorer.prefill(prompt)
    precision = scorer.precision
    expected = scorer.score(prefix, candidates, labels).score_NQ[:, 0]
    for figure, peer in _peers(record, folder, precision, labels, len(items)):
        peer.read(prompt)
        found = peer.check(items)
        known = np.isfinite(found)
        difference = float(np.abs(found - expected)[known].max(initial=0.0))
        ours, theirs = [], []
        for turn in range(repeats):
            _, fresh = draw(SHAPE, scorer.config.vocab_size, seed=1 + turn)
            ours += _times(lambda i=fresh: scorer.score(prefix, as_candidates(i), labels), 1, warm=False)  # type: ignore[misc]
            theirs += _times(lambda p=peer, i=fresh: p.score(i), 1, warm=False)  # type: ignore[misc]
        where = f"{precision}: {peer.name}"
        record.add_samples(
            f"{where}, scoring, warm cache", [1e3 * s for s in theirs], "ms", f"{_named(SHAPE)}; {peer.note}"
        )
        record.add_samples(f"{where}, ours beside it", [1e3 * s for s in ours], "ms", _named(SHAPE))
        record.add(f"{where}, largest difference of a score", difference, "", f"of {known.sum()} that it says")
        record.add(f"{where}, ours over theirs, best of each", min(theirs) / min(ours), "times")
        ratio = statistics.median(theirs) / statistics.median(ours)
        record.figures[figure] = min(record.figures.get(figure, math.inf), ratio)


def _peers(
    record: Record, folder: Path, precision: Precision, labels: Labels, num_items: int
) -> Iterator[tuple[str, Peer]]:
    """Yield each engine that is there, with its figure; what is not there becomes a row that says why."""
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as scratch:
        for figure, make in (
            ("vs_transformers", lambda: _made(Transformers(folder, precision, labels))),
            ("vs_llamacpp", lambda: _made(LlamaCpp(folder, precision, labels, 1, Path(scratch)))),
            ("vs_llamacpp", lambda: _made(LlamaCpp(folder, precision, labels, num_items, Path(scratch)))),
            ("vs_vllm_cpu", lambda: vllm_peer(folder, precision, labels, torch.get_num_threads())),
        ):
            try:
                with make() as peer:
                    yield figure, peer
            except UnsupportedError as error:
                record.add(f"{precision}: {figure}, skipped", 0.0, "", str(error))
                print(f"{precision}: {figure} skipped: {error}", flush=True)


@contextmanager
def _made(peer: Peer) -> Iterator[Peer]:
    yield peer


def _times(run: Callable[[], object], repeats: int, *, warm: bool = True) -> list[float]:
    """Seconds of each run, after one that is not counted."""
    if warm:
        run()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return found


def _named(shape: tuple[int, int, int]) -> str:
    return "prompt {}, item {}, N {}".format(*shape)

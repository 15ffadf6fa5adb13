"""The threads that a decoder's passes run on, each with one of torch's threads to itself.

A pass is hundreds of short products and compiled loops. With torch's threads inside every product, the others spin in
between and take the core from the loops, and each product waits for the slower core. So cores take whole passes
instead, over different tokens, and meet only where one needs what another computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, Lock
from typing import TypeVar

import torch

R = TypeVar("R")
_lock = Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def run_on_cores(runs: Sequence[Callable[[], R]], num_cores: int) -> list[R]:
    """Return what each run returned, on up to `num_cores` threads that all callers share; started in order.

    Runs are without gradient. The first error, in order, is raised when all have ended.
    """
    futures: list[Future[R]] = []
    pool = _pool(num_cores)
    with _lock:  # one caller's runs are started one after another: a run may wait for those before it
        futures += (pool.submit(_run, run) for run in runs)
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


def _run(run: Callable[[], R]) -> R:
    with torch.inference_mode():
        return run()


def _pool(num_cores: int) -> ThreadPoolExecutor:
    with _lock:
        if num_cores not in _pools:
            threads = torch.get_num_threads()
            pool = ThreadPoolExecutor(num_cores, thread_name_prefix="decoder")
            started = Barrier(num_cores)

            def settle() -> None:
                torch.set_num_threads(1)
                started.wait()

            for future in [pool.submit(settle) for _ in range(num_cores)]:
                future.result()
            torch.set_num_threads(threads)  # a part of that setting is the process's, not the thread's
            _pools[num_cores] = pool
        return _pools[num_cores]


def _forget_pools() -> None:
    global _pools, _lock
    _lock, _pools = Lock(), {}  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)

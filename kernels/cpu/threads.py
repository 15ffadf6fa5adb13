"""The threads that scan parts of one search, and how many of them there may be."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


_pool_lock = Lock()
_pool_of_scans: ThreadPoolExecutor | None = None


def scan_pool() -> ThreadPoolExecutor:
    """The threads that scan parts; every caller scans its first part itself, so a busy pool only costs time."""
    global _pool_of_scans
    with _pool_lock:
        if _pool_of_scans is None:
            _pool_of_scans = ThreadPoolExecutor(count_cores(), thread_name_prefix="scan")
        return _pool_of_scans


def _forget_pool() -> None:
    global _pool_of_scans, _pool_lock
    _pool_lock, _pool_of_scans = Lock(), None  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)

"""Where a server's CPU time goes: a thread that looks at the other threads' stacks a few hundred times a second.

Run as `python -m tests.bench.sampler OUT.json serve ...`: starts the sampler, then the `shortlist` command with the
remaining arguments, and writes CPU seconds by owner when it ends. Each sample charges the CPU time a thread has used
since the last one to the innermost frame that has an owner, so a waiting thread costs nothing. A native call counts
for the Python frame that made it: `models/` and `torch/` together are torch, `kernels/` and `numba/` are numba.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

INTERVAL_S = 0.002
OWNERS = (
    ("torch", ("/torch/", "/models/")),
    ("numba", ("/numba/", "/kernels/")),
    ("http", ("/uvicorn/", "/starlette/", "/fastapi/", "/pydantic", "/httpx/", "/asyncio/")),
    ("redis client", ("/redis/", "/hiredis/")),
    ("logs and metrics", ("/structlog/", "/prometheus_client/")),
    ("ours", ("/services/", "/index/")),
    ("standard library", ("/concurrent/", "/threading.py", "/queue.py", "/selectors.py", "/json/", "/logging/")),
)


def owner_of(frame: FrameType | None) -> str:
    """Who the innermost frame with an owner belongs to."""
    while frame is not None:
        path = frame.f_code.co_filename
        for owner, marks in OWNERS:
            if any(mark in path for mark in marks):
                return owner
        frame = frame.f_back
    return "other"


class Sampler(threading.Thread):
    """CPU seconds per owner until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="sampler")
        self.seconds: Counter[str] = Counter()
        self._used: dict[int, float] = {}
        self._stopping = threading.Event()

    def run(self) -> None:
        me = threading.get_ident()
        while not self._stopping.is_set():
            for ident, frame in sys._current_frames().items():
                if ident != me:
                    self._charge(ident, frame)
            time.sleep(INTERVAL_S)

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def _charge(self, ident: int, frame: FrameType) -> None:
        try:
            used = time.clock_gettime(time.pthread_getcpuclockid(ident))
        except OSError:  # the thread has ended since its frame was taken
            return
        spent = used - self._used.get(ident, used)
        self._used[ident] = used
        if spent > 0:
            self.seconds[owner_of(frame)] += spent


def main() -> None:
    out, arguments = Path(sys.argv[1]), sys.argv[2:]
    from services.cli import app  # imported before sampling starts: the start is not what is measured

    sampler = Sampler()
    sampler.start()
    try:
        app(arguments)
    finally:
        sampler.stop()
        out.write_text(json.dumps(sampler.seconds))


if __name__ == "__main__":
    main()

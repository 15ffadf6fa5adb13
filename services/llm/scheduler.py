"""One thread that owns the model, and a queue that takes only what can be done in time.

Work is cut into chunks of some tens of milliseconds; between two of them the work with the earliest deadline goes on,
so a long question never stands before a short one. What the measured speed cannot finish by its deadline is refused
at once, and so is what would make others late. Work whose caller left, or whose time is up, ends at its next look at
`Lease.stopped`: before it begins, between chunks, and inside them.
"""

from __future__ import annotations

import bisect
import itertools
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import structlog

from models.decoder.inference import Stopped

T = TypeVar("T")
Work = Callable[["Lease"], Generator[None, None, T]]
"""Yields between chunks and returns the result; tells the lease what it has computed."""
Outcome = Literal["done", "failed", "expired", "cancelled", "refused"]

CHUNK_S = 0.03
"""About how long a chunk runs: how late urgent work may begin."""
MIN_CHUNK_TOKENS = 32
"""Smaller chunks waste the matrix multiplications."""
HEADROOM = 1.15
"""Work is taken to last so many times what the speed says."""
HALF_LIFE_S = 2.0
"""Of the speed's memory, in seconds of work."""
MAX_WAITING = 256
MAX_IDLE = 32
"""Pieces of idle work that are kept."""


class Refused(Exception):
    """Work that would not be done in time. Nothing of it was begun."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        """Whole seconds, as the header Retry-After has them."""


class Speed:
    """Tokens a second, as measured of late."""

    def __init__(self, tokens_per_s: float) -> None:
        self.reset(tokens_per_s)

    def reset(self, tokens_per_s: float) -> None:
        """Begin anew with a measured speed. Raises ValueError for one that is not above 0."""
        if not tokens_per_s > 0.0:
            raise ValueError(f"tokens_per_s is {tokens_per_s}; expected above 0")
        self._tokens = tokens_per_s * HALF_LIFE_S
        self._seconds = HALF_LIFE_S
        self.tokens_per_s = tokens_per_s

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Take a measurement in; one without tokens or time says nothing."""
        if num_tokens < 1 or seconds <= 0.0:
            return
        kept = 0.5 ** (seconds / HALF_LIFE_S)
        self._tokens = kept * self._tokens + num_tokens
        self._seconds = kept * self._seconds + seconds
        self.tokens_per_s = self._tokens / self._seconds

    def seconds(self, num_tokens: float) -> float:
        """How long so many tokens take, with headroom."""
        return HEADROOM * num_tokens / self.tokens_per_s

    def tokens(self, seconds: float) -> int:
        """How many tokens fit into a time, with headroom; 0 where it is negative."""
        return max(0, int(seconds * self.tokens_per_s / HEADROOM))


class Lease:
    """What a piece of work knows of its time."""

    def __init__(self, job: _Job[Any], speed: Speed, clock: Callable[[], float]) -> None:
        self._job = job
        self._speed = speed
        self._clock = clock

    def stopped(self) -> bool:
        """Whether nobody waits any more: the caller left, or the time is up. Cheap; asked inside of passes."""
        return self._job.future.cancelled() or self._clock() >= self._job.deadline_s

    def left_s(self) -> float:
        """Seconds until the time is up."""
        return self._job.deadline_s - self._clock()

    def fits(self, num_tokens: int) -> bool:
        """Whether so many more tokens would be done in time if nothing came between."""
        return self._clock() + self._speed.seconds(num_tokens) <= self._job.deadline_s

    def done(self, num_tokens: int) -> None:
        """Note tokens that were computed since the last chunk began."""
        self._job.counted += num_tokens

    def chunk_tokens(self) -> int:
        """How many tokens a chunk should have."""
        return max(MIN_CHUNK_TOKENS, int(CHUNK_S * self._speed.tokens_per_s))


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    deadline_s: float
    number: int
    left: int
    """Tokens that are still to be computed."""
    least: int
    """Tokens without which the work is worth nothing; begun work has no such bound any more."""
    work: Work[T]
    future: Future[T] = field(default_factory=Future)
    running: Generator[None, None, T] | None = None
    counted: int = 0
    idle: bool = False
    """Goes on only while nothing else waits, and is in nobody's way."""

    @property
    def place(self) -> tuple[float, int]:
        return math.inf if self.idle else self.deadline_s, self.number


class Scheduler:
    """Safe to submit to from any thread. `step` is what the thread does; a test may do it itself."""

    def __init__(
        self,
        speed: Speed,
        *,
        logger: structlog.typing.FilteringBoundLogger,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[Outcome], None] | None = None,
        prepare: Callable[[], None] = lambda: None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """clock: seconds; deadlines are in it.  note: is told what became of every piece of work, once.
        prepare: is called in the thread before it works."""
        self.speed = speed
        self.clock = clock
        self.num_tokens = 0
        """Computed so far."""
        self._logger = logger
        self._note = note or (lambda _: None)
        self._prepare = prepare
        self._max_waiting = max_waiting
        self._jobs: list[_Job[Any]] = []  # in order of deadline
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="llm", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the chunk at hand; what waits is cancelled."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            waiting = list(self._jobs)
        for job in waiting:
            job.future.cancel()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.is_alive():
            self._thread.join()

    def __len__(self) -> int:
        return len(self._jobs)

    def waiting_tokens(self) -> int:
        """What is still to be computed for everybody who waits."""
        with self._changed:
            return sum(job.left for job in self._jobs if not job.future.cancelled())

    def room(self, deadline_s: float) -> int:
        """How many tokens of new work would be done by a deadline, without making anybody late."""
        with self._changed:
            now_s = self.clock()
            slack_s, busy_s = deadline_s - now_s, CHUNK_S if self._jobs else 0.0
            for job in self._jobs:
                if job.future.cancelled() or job.idle:
                    continue
                busy_s += self.speed.seconds(job.left)
                if job.deadline_s <= deadline_s:
                    slack_s = deadline_s - now_s - busy_s
                elif now_s + busy_s <= job.deadline_s:
                    slack_s = min(slack_s, job.deadline_s - now_s - busy_s)
        return self.speed.tokens(slack_s)

    def submit(
        self, work: Work[T], num_tokens: int, deadline_s: float, *, least: int | None = None, idle: bool = False
    ) -> Future[T]:
        """Queue work. Cancelling the future takes it out; it holds TimeoutError where the time ran out.

        num_tokens: what it will compute.  least: what it has to compute to be worth anything; None: all of it.
        idle: do it while there is nothing else to do, or not at all.

        Raises Refused for what would not be done in time, or would make work taken before it late.
        """
        job = _Job[T](deadline_s, next(self._numbers), num_tokens, num_tokens if least is None else least, work)
        job.idle = idle
        with self._changed:
            if idle:
                self._admit_idle()
            else:
                self._admit(job)
            bisect.insort(self._jobs, job, key=lambda waiting: waiting.place)
            self._changed.notify_all()
        return job.future

    def check_room(self, num_tokens: int, deadline_s: float) -> None:
        """Raise Refused where there is no room for about so many tokens: a look before anything is made for them."""
        room = self.room(deadline_s)
        if room < num_tokens:
            self._note("refused")
            raise Refused(
                f"about {num_tokens} tokens, and there is room for {room}",
                self.speed.seconds(self.waiting_tokens() + num_tokens),
            )

    def run_aside(self, work: Work[T], timeout_s: float) -> T:
        """Run work in the caller's thread, past the queue and beside what runs: at a start, before a model serves.

        Raises TimeoutError past the time, and what the work raises.
        """
        job = _Job[T](self.clock() + timeout_s, -1, 0, 0, work)
        running = work(Lease(job, self.speed, self.clock))
        while True:
            started_s, job.counted = self.clock(), 0
            try:
                next(running)
            except StopIteration as end:
                result: T = end.value
                self.speed.observe(job.counted, self.clock() - started_s)
                return result
            except Stopped:
                raise TimeoutError(f"not done within {timeout_s:.0f} s") from None
            self.speed.observe(job.counted, self.clock() - started_s)

    def _admit(self, new: _Job[Any]) -> None:
        now_s = self.clock()
        alive = [job for job in self._jobs if not job.future.cancelled() and job.deadline_s > now_s]
        waiting = [job for job in alive if not job.idle]
        own_s = self.speed.seconds(new.left)
        busy_s = CHUNK_S if alive else 0.0
        reason = None
        if self._stopping:
            reason = "the service is ending"
        elif len(waiting) >= self._max_waiting:
            reason = f"{len(waiting)} requests wait, the most there may be"
        ahead_s = busy_s
        for job in waiting:
            busy_s += self.speed.seconds(job.left)
            if job.deadline_s <= new.deadline_s:
                ahead_s = busy_s
            elif reason is None and now_s + busy_s <= job.deadline_s < now_s + busy_s + own_s:
                reason = "it would make a request that was taken before late"
        left_s = new.deadline_s - now_s
        if reason is None and ahead_s + own_s > left_s:
            reason = (
                f"{new.left} tokens behind {ahead_s * 1000:.0f} ms of other work would take "
                f"{(ahead_s + own_s) * 1000:.0f} ms, there are {left_s * 1000:.0f}"
            )
        if reason is not None:
            self._note("refused")
            raise Refused(reason, busy_s)

    def _admit_idle(self) -> None:
        if self._stopping or sum(job.idle for job in self._jobs) >= MAX_IDLE:
            self._note("refused")
            raise Refused("there is enough to do while there is nothing to do", 1.0)

    def step(self) -> bool:
        """Run one chunk of the most urgent work. Returns whether there was any."""
        with self._changed:
            job = next(self._living(), None)
        if job is None:
            return False
        outcome = self._advance(job)
        if outcome is not None:
            with self._changed:
                self._jobs.remove(job)
            if job.running is not None:
                job.running.close()
            self._note(outcome)
        return True

    def _living(self) -> Iterator[_Job[Any]]:
        """Take out what nobody waits for; yield the rest, the most urgent first."""
        now_s = self.clock()
        for job in list(self._jobs):
            least = job.least if job.running is None else 0
            outcome: Outcome | None = None
            if job.future.cancelled():
                outcome = "cancelled"
            elif now_s + self.speed.seconds(least) > job.deadline_s and not self._last_word(job, now_s):
                outcome = self._expire(job)
            if outcome is None:
                yield job
                continue
            self._jobs.remove(job)
            if job.running is not None:
                job.running.close()
            self._note(outcome)

    def _last_word(self, job: _Job[Any], now_s: float) -> bool:
        """Work that was begun may return what it has, even where its time is up."""
        return job.running is not None and now_s - job.deadline_s < CHUNK_S

    def _advance(self, job: _Job[Any]) -> Outcome | None:
        """Run a chunk; return what became of the work if it ended."""
        if job.running is None:
            job.running = job.work(Lease(job, self.speed, self.clock))
        started_s, job.counted = self.clock(), 0
        outcome: Outcome | None = None
        try:
            next(job.running)
        except StopIteration as end:
            outcome = self._resolve(job, end.value)
        except Stopped:
            outcome = "cancelled" if job.future.cancelled() else self._expire(job)
        except Exception as error:  # noqa: BLE001 - whatever the work raises is its caller's
            outcome = self._fail(job, error)
        else:
            self.speed.observe(job.counted, self.clock() - started_s)
        if outcome == "done":
            self.speed.observe(job.counted, self.clock() - started_s)
        self.num_tokens += job.counted
        job.left = max(0, job.left - job.counted)
        return outcome

    def _resolve(self, job: _Job[Any], value: Any) -> Outcome:
        try:
            job.future.set_result(value)
        except InvalidStateError:
            return "cancelled"
        return "done"

    def _expire(self, job: _Job[Any]) -> Outcome:
        try:
            job.future.set_exception(TimeoutError("the time was up before the answer was there"))
        except InvalidStateError:
            return "cancelled"
        return "expired"

    def _fail(self, job: _Job[Any], error: Exception) -> Outcome:
        try:
            job.future.set_exception(error)
        except InvalidStateError:
            self._logger.error("scoring failed for a caller that had left", exc_info=error)
            return "cancelled"
        return "failed"

    def _run(self) -> None:
        self._prepare()
        while not self._stopping:
            if not self.step():
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or bool(self._jobs))

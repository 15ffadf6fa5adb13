"""The queue before the model: with a clock and a model of its own, so that a second takes no time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future

import numpy as np
import pytest
import structlog

from models.decoder.inference import Stopped
from services.llm.scheduler import CHUNK_S, HEADROOM, MAX_IDLE, Lease, Refused, Scheduler, Speed, Work
from tests.services.llm.world import Clock

RATE = 1000.0
"""Tokens a second of the model here."""


class World:
    """A scheduler over a model that takes its time from a clock."""

    def __init__(self, rate: float = RATE, **options: int) -> None:
        self.clock = Clock()
        self.rate = rate
        self.outcomes: Counter[str] = Counter()
        self.order: list[str] = []
        self.scheduler = Scheduler(
            Speed(RATE),
            logger=structlog.get_logger(),
            clock=self.clock,
            note=lambda outcome: self.outcomes.update([outcome]),
            **options,
        )

    def work(self, num_tokens: int, name: str = "") -> Work[str]:
        """Compute so many tokens in chunks; the answer is the name."""

        def run(lease: Lease) -> Generator[None, None, str]:
            left = num_tokens
            while left:
                size = min(left, lease.chunk_tokens())
                if lease.stopped():
                    raise Stopped
                self.clock.now_s += size / self.rate
                lease.done(size)
                left -= size
                self.order.append(name)
                if left:
                    yield
            return name

        return run

    def submit(self, num_tokens: int, in_s: float, name: str = "") -> Future[str]:
        return self.scheduler.submit(self.work(num_tokens, name), num_tokens, self.clock.now_s + in_s)

    def drain(self) -> None:
        for _ in range(100_000):
            if not self.scheduler.step():
                return
        raise AssertionError("work that never ends")


def test_work_is_done_and_counted() -> None:
    world = World()
    future = world.submit(500, 1.0, "a")
    world.drain()
    assert future.result(0) == "a" and world.outcomes == {"done": 1}
    assert world.scheduler.num_tokens == 500 and len(world.scheduler) == 0
    assert world.order.count("a") == pytest.approx(500 / (RATE * CHUNK_S), abs=1)


def test_what_cannot_be_done_in_time_is_refused_at_once() -> None:
    world = World()
    with pytest.raises(Refused, match="2000 tokens") as refused:
        world.submit(2000, 1.0)
    assert refused.value.retry_after_s >= 1 and world.outcomes == {"refused": 1} and len(world.scheduler) == 0
    world.submit(800, 1.0)
    with pytest.raises(Refused, match="behind"):
        world.submit(400, 1.0)


def test_urgent_work_goes_before_long_work_that_was_begun() -> None:
    world = World()
    long = world.submit(5000, 60.0, "long")
    world.scheduler.step()
    urgent = world.submit(60, 0.2, "urgent")
    while not urgent.done():
        world.scheduler.step()
    assert not long.done() and world.order[0] == "long"
    world.drain()
    assert long.result(0) == "long" and urgent.result(0) == "urgent"


def test_work_that_would_make_earlier_work_late_is_refused() -> None:
    world = World()
    world.submit(800, 1.0, "first")
    with pytest.raises(Refused, match="late"):
        world.submit(100, 0.4, "urgent")
    world.submit(30, 0.4, "small")
    world.drain()
    assert world.outcomes["done"] == 2 and world.outcomes["expired"] == 0


def test_cancelled_work_stops_consuming() -> None:
    world = World()
    waiting = world.submit(300, 5.0, "waiting")
    running = world.submit(3000, 4.0, "running")
    world.scheduler.step()
    computed = world.scheduler.num_tokens
    assert 0 < computed < 3000
    running.cancel()
    waiting.cancel()
    assert world.scheduler.waiting_tokens() == 0
    world.drain()
    assert world.scheduler.num_tokens == computed and world.outcomes == {"cancelled": 2}
    assert world.order == ["running"], "what waited never began"


def test_work_cancelled_inside_of_a_pass_ends_there() -> None:
    world = World()
    future: Future[str]

    def one_pass(lease: Lease) -> Generator[None, None, str]:
        yield
        for layer in range(30):
            if lease.stopped():
                raise Stopped
            lease.done(10)
            if layer == 4:
                future.cancel()
        return "never"

    future = world.scheduler.submit(one_pass, 300, world.clock.now_s + 1.0)
    world.drain()
    assert future.cancelled() and world.outcomes == {"cancelled": 1} and world.scheduler.num_tokens == 50


def test_a_model_slower_than_thought_keeps_no_one_waiting_past_the_deadline() -> None:
    world = World(rate=RATE / 4)
    futures = [world.submit(300, 1.0, str(number)) for number in range(2)]
    world.drain()
    assert world.clock.now_s <= 101.0 + CHUNK_S * 4 + 0.01
    for future in futures:
        assert future.done() and isinstance(future.exception(0), TimeoutError)
    assert world.outcomes == {"expired": 2}
    assert world.scheduler.speed.tokens_per_s < RATE / 1.3, "it has learned"


def test_an_error_is_its_callers_and_nobody_elses() -> None:
    world = World()

    def broken(lease: Lease) -> Generator[None, None, str]:
        yield
        raise ValueError("broken on purpose")

    bad = world.scheduler.submit(broken, 10, world.clock.now_s + 1.0)
    good = world.submit(10, 1.0, "good")
    world.drain()
    assert isinstance(bad.exception(0), ValueError) and good.result(0) == "good"


def test_deadlines_hold_under_saturation() -> None:
    """Four times as much work as the model can do: what is taken is done in time, the rest is told at once."""
    world = World()
    random = np.random.default_rng(3)
    lateness: list[float] = []
    taken: list[Future[str]] = []
    next_s = world.clock.now_s
    while world.clock.now_s < 160.0:
        while next_s <= world.clock.now_s:
            num_tokens, in_s = int(random.integers(50, 600)), float(random.uniform(0.1, 1.5))
            deadline_s = world.clock.now_s + in_s
            try:
                future = world.scheduler.submit(world.work(num_tokens), num_tokens, deadline_s)
            except Refused:
                pass
            else:
                future.add_done_callback(late_by(world, lateness, deadline_s))
                taken.append(future)
            next_s += float(random.exponential(325 / (4 * RATE)))
        if not world.scheduler.step():
            world.clock.now_s = next_s
    world.drain()
    assert all(future.done() for future in taken) and len(lateness) == len(taken) > 100
    assert float(np.quantile(lateness, 0.99)) <= 0.0
    assert world.outcomes["refused"] > len(taken)
    done = world.outcomes["done"]
    assert done >= 0.95 * len(taken), "what was taken was done, not dropped"
    assert world.scheduler.num_tokens >= 0.6 * RATE * 60.0, "and the model was not idle"


def late_by(world: World, lateness: list[float], deadline_s: float) -> Callable[[Future[str]], None]:
    return lambda _: lateness.append(world.clock.now_s - deadline_s)


def test_room_is_what_would_be_taken() -> None:
    world = World()
    assert world.scheduler.room(world.clock.now_s + 1.0) == int(RATE / HEADROOM)
    world.submit(200, 0.5)
    world.submit(300, 30.0)
    room = world.scheduler.room(world.clock.now_s + 1.0)
    assert 0 < room < RATE / HEADROOM - 200
    with pytest.raises(Refused):
        world.submit(room + 5, 1.0)
    world.submit(room - 1, 1.0)
    assert world.scheduler.room(world.clock.now_s - 1.0) == 0


def test_idle_work_is_in_nobodys_way() -> None:
    world = World()
    idle = world.scheduler.submit(world.work(2000, "idle"), 2000, world.clock.now_s + 10.0, idle=True)
    world.scheduler.step()
    assert world.order == ["idle"]
    assert world.scheduler.room(world.clock.now_s + 1.0) == int(RATE / HEADROOM)
    urgent = world.submit(800, 1.0, "urgent")
    while not urgent.done():
        world.scheduler.step()
    assert not idle.done() and world.order.count("idle") == 1
    world.drain()
    assert idle.result(0) == "idle"
    for _ in range(MAX_IDLE):
        world.scheduler.submit(world.work(1), 1, world.clock.now_s + 10.0, idle=True)
    with pytest.raises(Refused):
        world.scheduler.submit(world.work(1), 1, world.clock.now_s + 10.0, idle=True)


def test_the_queue_is_bounded() -> None:
    world = World(max_waiting=3)
    for _ in range(3):
        world.submit(1, 10.0)
    with pytest.raises(Refused, match="3 requests wait"):
        world.submit(1, 10.0)


def test_the_thread_works_and_ends() -> None:
    world = World()
    scheduler = world.scheduler
    scheduler.clock = time.monotonic
    entered, left = threading.Event(), threading.Event()

    def slow(lease: Lease) -> Generator[None, None, str]:
        entered.set()
        left.wait(5)
        yield
        raise AssertionError("the service has ended")

    scheduler.start()
    deadline_s = time.monotonic() + 60.0
    assert scheduler.submit(world.work(5, "quick"), 5, deadline_s).result(5) == "quick"
    stuck = scheduler.submit(slow, 5, deadline_s)
    waiting = scheduler.submit(world.work(5, "late"), 5, deadline_s)
    assert entered.wait(5)
    scheduler.stop()
    left.set()
    scheduler.join()
    assert stuck.cancelled() and waiting.cancelled()
    with pytest.raises(Refused, match="ending"):
        scheduler.submit(world.work(5), 5, deadline_s)


def test_speed_forgets() -> None:
    speed = Speed(100.0)
    for _ in range(50):
        speed.observe(1000, 0.5)
    assert speed.tokens_per_s == pytest.approx(2000.0, rel=0.02)
    speed.observe(0, 1.0)
    speed.observe(10, 0.0)
    assert speed.tokens_per_s == pytest.approx(2000.0, rel=0.02)
    with pytest.raises(ValueError, match="tokens_per_s is 0"):
        Speed(0.0)

"""The gateway under a steady load: 20 recommendations/s beside 20 item writes/s on one machine.

`python -m tests.bench.gateway [--quick] [--json FILE]`. Prepares the MovieLens-100k demo in a folder of its own, starts
`shortlist serve` as a process and drives it open-loop from this one: a request that starts late counts from when it
should have started. Every write waits until it is visible to recommendations. A second, shorter run under a stack
sampler says where the server's CPU time goes. Figures: total_p99_ms, visible_p99_ms.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.bench.record import Record

RATE_PER_S = 20.0
STAGES = ("hydrate", "retrieve", "rank", "arrange", "total")
FILTERS = (
    None,
    'genre any_of ["Comedy", "Drama"]',
    'genre any_of ["Sci-Fi"] and year >= 1990',
    "year < 1970",
)


@dataclass(slots=True)
class Samples:
    """Milliseconds by what was measured; what went wrong, by its text."""

    times_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 s of load instead of 300 s")
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    parser.add_argument("--data-dir", type=Path, help="a prepared demo folder; it is written to (default: a new one)")
    options = parser.parse_args()
    record = Record("gateway")
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as scratch:
        data_dir = options.data_dir or Path(scratch) / "data"
        started = time.perf_counter()
        run_cli(["demo", "--prepare"], data_dir)
        record.add("prepare the demo (no-op if ready)", time.perf_counter() - started, "s")
        seconds = 60.0 if options.quick else 300.0
        samples = measure(data_dir, seconds, None)
        shares = Path(scratch) / "shares.json"
        measure(data_dir, min(seconds, 30.0), shares)
        report(record, samples, json.loads(shares.read_text()))
    record.write(options.json)
    print(record.table())
    return 1 if samples.errors else 0


def report(record: Record, samples: Samples, seconds: dict[str, float]) -> None:
    """Turn samples into rows and figures."""
    for stage in STAGES:
        record.add_samples(f"recommendation, server, {stage}", samples.times_ms[f"server {stage}"], "ms")
    total = record.add_samples("recommendation, client, total", samples.times_ms["recommend"], "ms")
    visible = record.add_samples("item write until visible, client", samples.times_ms["write"], "ms")
    spent = sum(seconds.values())
    for owner, share in sorted(seconds.items(), key=lambda pair: -pair[1]):
        record.add(f"server CPU share: {owner}", 100.0 * share / spent, "%", "sampled in a run of its own")
    for error, count in samples.errors.items():
        record.add(f"error: {error}", count, "requests")
    assert total.p99 is not None and visible.p99 is not None
    record.figures["total_p99_ms"] = total.p99
    record.figures["visible_p99_ms"] = visible.p99


def measure(data_dir: Path, seconds: float, shares: Path | None) -> Samples:
    """Start a server, load it for `seconds` after a warm-up, stop it. With `shares` it runs under the sampler."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *(["tests.bench.sampler", str(shares)] if shares else ["services.cli"])]
    log = (data_dir / "bench-server.log").open("w")
    server = subprocess.Popen(
        [*command, "serve", "--port", str(port)], env=environment(data_dir), stdout=log, stderr=log
    )
    try:
        return asyncio.run(drive(f"http://127.0.0.1:{port}", seconds))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
        log.close()


async def drive(url: str, seconds: float) -> Samples:
    """Wait until the server is ready, warm it up, then measure."""
    async with httpx.AsyncClient(base_url=url, timeout=10.0, limits=httpx.Limits(max_connections=64)) as client:
        for _ in range(600):
            try:
                if (await client.get("/readyz")).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
        else:
            raise RuntimeError(f"{url} was not ready within 60 s")
        await load(client, 5.0)
        return await load(client, seconds)


async def load(client: httpx.AsyncClient, seconds: float) -> Samples:
    """Both streams at their rate, half a period apart; returns when every request has its answer."""
    samples, choice = Samples(), random.Random(7)
    start = time.perf_counter() + 0.05
    tasks = []
    for number in itertools.count():
        due = start + number / RATE_PER_S
        if due - start >= seconds:
            break
        tasks.append(asyncio.create_task(recommend(client, due, choice.randint(1, 943), number, samples)))
        tasks.append(asyncio.create_task(write(client, due + 0.5 / RATE_PER_S, number, samples)))
    await asyncio.gather(*tasks)
    return samples


async def recommend(client: httpx.AsyncClient, due: float, user: int, number: int, samples: Samples) -> None:
    body = {"user_id": str(user), "limit": 10, "include": ["scores", "metadata"]}
    if (condition := FILTERS[number % len(FILTERS)]) is not None:
        body["filter"] = condition
    response = await at(due, client.post, "/v1/recommendations", body)
    samples.times_ms["recommend"].append((time.perf_counter() - due) * 1000.0)
    if response.status_code != 200:
        samples.errors[f"recommend {response.status_code} {response.text[:80]}"] += 1
        return
    answer = response.json()
    for stage in STAGES:
        samples.times_ms[f"server {stage}"].append(answer["timings"][stage])
    for entry in answer["degraded"]:
        samples.errors[f"degraded {entry['stage']}: {entry['reason'][:60]}"] += 1


async def write(client: httpx.AsyncClient, due: float, number: int, samples: Samples) -> None:
    body = {"attributes": {"title": f"Bench film {number}", "genre": ["Drama"], "year": 1990 + number % 9}}
    url = f"/v1/items/bench-{number % 500}?wait_for=visible&timeout_ms=5000"
    response = await at(due, client.put, url, body)
    samples.times_ms["write"].append((time.perf_counter() - due) * 1000.0)
    if response.status_code not in (200, 201) or not response.json()["visible"]:
        samples.errors[f"write {response.status_code} {response.text[:80]}"] += 1


async def at(due: float, send, url: str, body: object) -> httpx.Response:  # type: ignore[no-untyped-def]
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    return await send(url, json=body)


def run_cli(arguments: list[str], data_dir: Path) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "services.cli", *arguments], env=environment(data_dir), check=True)


def environment(data_dir: Path) -> dict[str, str]:
    return os.environ | {
        "SHORTLIST_DATA_DIR": str(data_dir),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
    }


if __name__ == "__main__":
    sys.exit(main())

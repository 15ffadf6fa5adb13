"""The gateway beside a language model that has more to do than it can: 5 recommendations/s while it is saturated.

`python -m tests.bench.llm_load [--quick] [--json FILE] [--data-dir DIR] [--layers N]`. Prepares the MovieLens-100k demo
in a folder of its own. Where it has no `llm` artifact, the first N layers of SmolLM2 are one, with a blend that gives
them weight: what they say is worth nothing, what they cost is the same. `shortlist serve` runs as a process with the
model in it. Open-loop recommendations are measured alone, then beside clients that ask /v1/score as fast as they are
answered, some of whom leave before the answer. Figures: total_p99_ms and total_p99_ms_saturated (client side, against a
budget of 250 ms), score_p99_ms and score_late_share (of answers of /v1/score, against 2,000 ms), refusal_p99_ms,
tokens_after_leaving (computed for clients that had left).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from models.decoder.blend import HISTORY_EDGES, Blend, Weights
from models.decoder.checkpoint import read_decoder
from models.decoder.model import LlmModel, question_names
from models.decoder.shorten import shorten
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.verbalizer import Verbalizer
from models.ranking.calibration import Calibration
from services.datasets.dataset import Dataset
from services.llm.pretrained import fetch_smollm2
from services.storage.artifacts import ArtifactRegistry, Provenance
from tests.bench.gateway import at, environment, run_cli
from tests.bench.record import Record

RATE_PER_S = 5.0
BUDGET_MS = 250
SCORE_BUDGET_MS = 2000
NUM_CLIENTS = 6
ITEMS_PER_QUESTION = 12
LEAVING_EVERY = 5
STAGES = ("hydrate", "retrieve", "rank", "rerank", "arrange", "total")


@dataclass(slots=True)
class Samples:
    times_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    depths: list[int] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 s of each load instead of 120 s")
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    parser.add_argument("--data-dir", type=Path, help="a prepared demo folder; it is written to (default: a new one)")
    parser.add_argument("--layers", type=int, default=8, help="of SmolLM2, where the folder has no llm artifact")
    options = parser.parse_args()
    record = Record("llm_load")
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as scratch:
        data_dir = options.data_dir or Path(scratch) / "data"
        run_cli(["demo", "--prepare"], data_dir)
        made = ensure_model(data_dir, options.layers)
        record.add("language model", 0.0, "", made)
        seconds = 20.0 if options.quick else 120.0
        with serving(data_dir) as url:
            alone, saturated, after = asyncio.run(drive(url, seconds))
    report(record, alone, saturated, after)
    record.write(options.json)
    print(record.table())
    return 0


def report(record: Record, alone: Samples, saturated: Samples, tokens_after: float) -> None:
    for name, samples in (("alone", alone), ("saturated", saturated)):
        for stage in STAGES:
            record.add_samples(f"recommendation, {name}, server, {stage}", samples.times_ms[f"server {stage}"], "ms")
        total = record.add_samples(f"recommendation, {name}, client", samples.times_ms["recommend"], "ms")
        assert total.p99 is not None
        record.figures["total_p99_ms" if name == "alone" else "total_p99_ms_saturated"] = total.p99
        record.add(f"candidates reranked, {name}", sum(samples.depths) / len(samples.depths), "items", "mean")
        for what, count in sorted(samples.counts.items()):
            record.add(f"{name}: {what}", count, "requests")
    scored = record.add_samples("/v1/score, answered", saturated.times_ms["score"] or [0.0], "ms")
    late = sum(elapsed > SCORE_BUDGET_MS + 50.0 for elapsed in saturated.times_ms["score"])
    record.figures["score_late_share"] = late / max(1, len(saturated.times_ms["score"]))
    assert scored.p99 is not None
    record.figures["score_p99_ms"] = scored.p99
    if saturated.times_ms["refused"]:
        refused = record.add_samples("/v1/score, refused", saturated.times_ms["refused"], "ms")
        assert refused.p99 is not None
        record.figures["refusal_p99_ms"] = refused.p99
    record.figures["tokens_after_leaving"] = tokens_after


def ensure_model(data_dir: Path, num_layers: int) -> str:
    """Publish a model where there is none; say what is served."""
    registry = ArtifactRegistry(data_dir / "artifacts")
    current = registry.current("llm")
    if current is not None:
        return f"artifact {current}"
    dataset = Dataset.load(Path("configs/movielens.toml"))
    schema, tasks = dataset.feature_schema(), dataset.task_prompts()[:1]
    folder = fetch_smollm2()
    tokenizer = Tokenizer.from_folder(folder)
    weights = Weights(1.0, 0.2, 0.0)
    model = LlmModel(
        shorten(read_decoder(folder), num_layers),
        tokenizer,
        tasks,
        {task.name: Verbalizer(task, tokenizer, schema).version for task in tasks},
        Calibration.identity(question_names(tasks)),
        Blend((weights,) * (len(HISTORY_EDGES) + 1), weights),
    )
    version = registry.publish("llm", lambda path: model.save(path, schema), Provenance(schema_hash=schema.hash()))
    registry.promote("llm", version)
    return f"the first {num_layers} layers of SmolLM2-135M, untrained"


@contextlib.contextmanager
def serving(data_dir: Path):  # type: ignore[no-untyped-def]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = environment(data_dir) | {"SHORTLIST_LLM__ENABLED": "true"}
    for name in ("SHORTLIST_LLM__PRECISION", "SHORTLIST_LLM__THREADS"):
        if name in os.environ:
            variables[name] = os.environ[name]
    with (data_dir / "bench-server.log").open("w") as log:
        command = [sys.executable, "-m", "services.cli", "serve", "--port", str(port)]
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


async def drive(url: str, seconds: float) -> tuple[Samples, Samples, float]:
    """Both loads in turn, then what is computed for clients that have left."""
    limits = httpx.Limits(max_connections=128)
    async with httpx.AsyncClient(base_url=url, timeout=20.0, limits=limits) as client:
        for _ in range(1200):
            try:
                if (await client.get("/readyz")).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
        else:
            raise RuntimeError(f"{url} was not ready within 120 s")
        await load(client, 5.0, 0)
        alone = await load(client, seconds, 0)
        saturated = await load(client, seconds, NUM_CLIENTS)
        return alone, saturated, await leave(client)


async def load(client: httpx.AsyncClient, seconds: float, num_clients: int) -> Samples:
    samples, choice = Samples(), random.Random(7)
    start = time.perf_counter() + 0.05
    tasks = [asyncio.create_task(saturate(client, start + seconds, number, samples)) for number in range(num_clients)]
    for number in itertools.count():
        due = start + number / RATE_PER_S
        if due - start >= seconds:
            break
        tasks.append(asyncio.create_task(recommend(client, due, choice.randint(1, 943), samples)))
    await asyncio.gather(*tasks)
    return samples


async def recommend(client: httpx.AsyncClient, due: float, user: int, samples: Samples) -> None:
    body = {"user_id": str(user), "limit": 10, "budget_ms": BUDGET_MS}
    response = await at(due, client.post, "/v1/recommendations", body)
    samples.times_ms["recommend"].append((time.perf_counter() - due) * 1000.0)
    if response.status_code != 200:
        samples.counts[f"status {response.status_code}"] += 1
        return
    answer = response.json()
    samples.depths.append(answer["reranked"])
    samples.counts["reranked" if answer["reranked"] else "in the ranker's order"] += 1
    for stage in STAGES:
        samples.times_ms[f"server {stage}"].append(answer["timings"][stage])
    for entry in answer["degraded"]:
        samples.counts[f"degraded {entry['stage']}: {re.sub('[0-9]+', 'N', entry['reason'])[:60]}"] += 1


async def saturate(client: httpx.AsyncClient, until: float, number: int, samples: Samples) -> None:
    """Ask as fast as answers come; every fifth time leave after a moment."""
    choice = random.Random(number)
    for turn in itertools.count():
        if time.perf_counter() >= until:
            return
        started = time.perf_counter()
        leaves = turn % LEAVING_EVERY == LEAVING_EVERY - 1
        try:
            timeout = 0.2 if leaves else 20.0
            response = await client.post("/v1/score", json=question(choice, SCORE_BUDGET_MS), timeout=timeout)
        except httpx.ReadTimeout:
            samples.counts["left"] += 1
            continue
        elapsed_ms = (time.perf_counter() - started) * 1000.0
        if response.status_code == 200:
            samples.times_ms["score"].append(elapsed_ms)
            samples.counts["scored"] += 1
        else:
            samples.times_ms["refused"].append(elapsed_ms)
            samples.counts[f"/v1/score {response.status_code}"] += 1
            await asyncio.sleep(0.3)


async def leave(client: httpx.AsyncClient) -> float:
    """Begin long questions, leave, and return how many tokens are computed after that."""
    choice = random.Random(1)

    async def begin() -> None:
        with contextlib.suppress(httpx.ReadTimeout):
            await client.post("/v1/score", json=question(choice, 30_000, 200), timeout=0.3)

    for _ in range(100):  # what was left of the load, and prompts that are read while there is time
        if await gauge(client, "waiting") == 0.0:
            break
        await asyncio.sleep(0.2)
    await asyncio.gather(*(begin() for _ in range(4)))
    await asyncio.sleep(0.3)
    before = await gauge(client, "tokens")
    await asyncio.sleep(2.0)
    return await gauge(client, "tokens") - before


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    found = re.search(rf"^shortlist_llm_{name} (\S+)$", (await client.get("/metrics")).text, re.M)
    assert found is not None
    return float(found[1])


def question(choice: random.Random, budget_ms: int, num_items: int = ITEMS_PER_QUESTION) -> dict[str, object]:
    items = [{"id": str(choice.randint(1, 1000))} for _ in range(num_items)]
    return {"user_id": str(choice.randint(1, 943)), "items": items, "budget_ms": budget_ms}


if __name__ == "__main__":
    sys.exit(main())

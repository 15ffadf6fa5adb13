"""The demo: MovieLens-100k as a running platform. Each step looks first whether its work is done already."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from models.data.items import ItemTable
from models.retrieval.model import RetrievalModel
from services.app import make_logger
from services.bars import Bars
from services.clock import Clock
from services.datasets.dataset import Dataset
from services.datasets.movielens import prepare_movielens
from services.folder import has_clock, job_storage, save_clock
from services.importing.report import ImportReport
from services.importing.run import import_file, show_report
from services.retrieval.engine import Quotas
from services.retrieval.loading import index_folder, load_retrieval
from services.serving import serve as serve_platform
from services.serving import served
from services.settings import Settings
from services.storage.storage import Storage
from services.training.data import load_training_data
from services.training.jobs import RANKING, RETRIEVAL, train
from services.training.run import make_gate

DATASET = Path(__file__).resolve().parent.parent / "configs" / "movielens.toml"
MEMBER = "276"
FILTER = 'genre any_of ["Sci-Fi", "Thriller"] and year >= 1990'
SIMILAR_TO = "50"


def settings_of(settings: Settings) -> Settings:
    """The settings with the demo's dataset, which is found wherever the command is started."""
    return settings.model_copy(update={"dataset": DATASET})


def prepare(settings: Settings, data: Path | None, console: Console) -> None:
    """Fetch, import, train and index, as far as that is not done."""
    dataset = Dataset.load(settings.dataset)
    started = time.perf_counter()
    console.print(f"[bold]{dataset.name}[/]  {dataset.licence}", highlight=False)
    with job_storage(settings, "demo") as storage:
        _import(storage, dataset, data, console)
        _train(storage, settings, dataset, console)
        if not has_clock(settings.data_dir):
            # The films were rated in 1997 and 1998. The platform's clock starts where the data ends, or everything
            # would be decades out of date.
            newest_ms = pc.max(storage.archive.load()["ts_ms"]).as_py()
            save_clock(settings.data_dir, Clock.starting_at(newest_ms + 1000))
    if not index_folder(settings.data_dir).exists():
        # Opened anew, for the clock.
        with job_storage(settings, "demo") as storage:
            _index(storage, dataset, settings)
    console.print(f"ready after {time.perf_counter() - started:.1f} s", highlight=False)


def serve(settings: Settings, console: Console) -> None:
    """Serve the platform, and print lines to try once it answers; requests are not logged between them."""
    settings = settings.model_copy(update={"http": settings.http.model_copy(update={"access_log": False})})

    def ready(url: str) -> None:
        for line in _lines_to_try(url):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    serve_platform(settings, ready=ready)


def show_once(settings: Settings, console: Console) -> None:
    """Serve for a moment, ask the questions that `serve` suggests, and print the answers."""
    quiet = settings.model_copy(update={"http": settings.http.model_copy(update={"port": 0, "log_level": "warning"})})
    with served(quiet) as url, httpx.Client(base_url=url, timeout=30.0) as client:
        body: dict[str, Any] = {"user_id": MEMBER, "limit": 10, "include": ["metadata", "scores", "sources"]}
        _show(console, f"member {MEMBER}", _ask(client, "POST", "/v1/recommendations", body))
        _show(
            console,
            f"member {MEMBER}, {FILTER}",
            _ask(client, "POST", "/v1/recommendations", body | {"filter": FILTER}),
        )
        _show(console, "somebody new", _ask(client, "POST", "/v1/recommendations", body | {"user_id": "nobody-yet"}))
        similar = _ask(client, "GET", f"/v1/items/{SIMILAR_TO}/similar?limit=5", None)
        console.print(f"similar to item {SIMILAR_TO}: " + ", ".join(item["id"] for item in similar["items"]))


def _import(storage: Storage, dataset: Dataset, data: Path | None, console: Console) -> None:
    reports: list[ImportReport] = []
    with Bars(console) as bars:
        bars("fetch", 0, None)
        files = prepare_movielens(storage.data_dir / "source", data)
        bars("fetch", 1, 1)
        reports.append(import_file(storage, dataset, "items", files.items, progress=bars))
        reports.append(import_file(storage, dataset, "users", files.users, progress=bars))
        reports.append(import_file(storage, dataset, "events", files.events, progress=bars))
    for report in reports:
        show_report(report, console)


def _train(storage: Storage, settings: Settings, dataset: Dataset, console: Console) -> None:
    schema = dataset.feature_schema()
    kinds = tuple(kind for kind in (RETRIEVAL, RANKING) if not _is_current(storage, kind, schema.hash()))
    if not kinds:
        return
    data = load_training_data(storage, schema)
    with Bars(console) as bars:
        gate = make_gate(settings, dataset, storage.scenarios)
        train(data, storage.artifacts, gate, kinds, bars, config=dataset.ranking.config())


def _is_current(storage: Storage, kind: str, schema_hash: str) -> bool:
    if storage.artifacts.current(kind) is None:
        return False
    return storage.artifacts.open(kind, verify=False).provenance.schema_hash == schema_hash


def _index(storage: Storage, dataset: Dataset, settings: Settings) -> None:
    """Build the index and write its first snapshot."""
    schema = dataset.feature_schema()
    engine = load_retrieval(
        storage,
        RetrievalModel.load(storage.artifacts.open(RETRIEVAL).folder, schema),
        schema,
        dataset.attribute_schema(),
        items=ItemTable(schema),
        quotas=Quotas(),
        num_threads=settings.retrieval.search_threads,
        logger=make_logger("warning"),
    )
    engine.snapshot(index_folder(storage.data_dir))


def _lines_to_try(url: str) -> list[str]:
    asked = json.dumps({"user_id": MEMBER, "limit": 10, "filter": FILTER, "include": ["metadata", "scores"]})
    return [
        "",
        f"Shortlist answers on {url}; its documentation is at {url}/docs. Try:",
        "",
        f"  curl '{url}/v1/users/{MEMBER}/recommendations?limit=10&include=metadata'",
        "",
        f"  curl -X POST {url}/v1/recommendations -H 'content-type: application/json' -d '{asked}'",
        "",
        f"  curl '{url}/v1/items/{SIMILAR_TO}/similar?limit=5'",
        "",
    ]


def _ask(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    answer = client.request(method, path, json=body)
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document


def _show(console: Console, title: str, answer: dict[str, Any]) -> None:
    tasks = list(answer["items"][0]["probabilities"] or {}) if answer["items"] else []
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("", "title", "genre", "score", *tasks, "sources"):
        table.add_column(name)
    for item in answer["items"]:
        chances = [f"{(item['probabilities'] or {}).get(task, float('nan')):.3f}" for task in tasks]
        genres = ", ".join(item["metadata"].get("genre", []))
        row = [str(item["rank"]), item["metadata"]["title"], genres, f"{item['score']:.3f}"]
        table.add_row(*row, *chances, "+".join(item["sources"]))
    console.print(table)
    plan = answer["filter_plan"]
    spent = "  ".join(f"{stage} {ms:.1f} ms" for stage, ms in answer["timings"].items())
    console.print(
        f"{spent}\nmatched {plan['matched']} items, {plan['strategy']}, exact {plan['exact']}, "
        f"cold start {answer['cold_start']}, degraded {answer['degraded'] or 'nothing'}\n",
        highlight=False,
    )

"""The command line as a person uses it: real processes, real files."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from services.storage.server import EmbeddedServer
from tests.services.processes import run, started

COMMANDS = ("demo", "serve", "import", "train", "replay", "links", "health", "prompt")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_suffices(command: str, tmp_path: Path) -> None:
    text = run(command, "--help", data_dir=tmp_path)
    assert "Usage" in text and len(text.splitlines()) > 5


def test_demo_once_prints_titled_answers_with_timings(demo_data: tuple[Path, str]) -> None:
    text = demo_data[1]
    assert "research use" in text, "the licence is shown"
    assert len(re.findall(r"Film \d+ \(\d{4}\)", text)) >= 20
    assert re.search(
        r"hydrate [\d.]+ ms  retrieve [\d.]+ ms  rank [\d.]+ ms  rerank [\d.]+ ms  arrange [\d.]+ ms  total [\d.]+ ms",
        text,
    )
    assert "degraded nothing" in text and "cold start True" in text and "similar to item 50" in text


def test_a_second_demo_does_nothing_again(demo_data: tuple[Path, str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (demo_data[0] / "artifacts").rglob("*") if path.is_file()}
    text = run("demo", "--prepare", "--data", str(demo_data[0].parent / "ml-100k.zip"), data_dir=demo_data[0])
    assert text.count("imported before") == 3 and "train" not in text
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_import_reports_each_rejected_row_and_keeps_the_rest(demo_data: tuple[Path, str], tmp_path: Path) -> None:
    data_dir = demo_data[0]
    films = tmp_path / "more.csv"
    films.write_text("item_id,title,year\nnew-1,A film,1999\nnew-2,Another,soon\nnew-3,A third,2001\n")
    text = run("import", "items", str(films), data_dir=data_dir, expect=1)
    assert "3 rows, 2 items imported, 1 rejected" in text
    assert "row 2, column 'year': 'soon'" in text


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (("serve",), {}, "there is no retrieval model"),
        (("serve", "--only", "gatewy"), {}, "--only gatewy: expected some of gateway, retrieval, ranking, llm, ingest"),
        (("serve", "--only", "gateway"), {}, "SHORTLIST_RETRIEVAL__URL"),
        (("serve",), {"SHORTLIST_GATWAY": "1"}, "unknown variable SHORTLIST_GATWAY"),
        (("serve",), {"SHORTLIST_HTTP__PORT": "eighty"}, "SHORTLIST_HTTP__PORT"),
        (("serve", "--config", "/nowhere.toml"), {}, "/nowhere.toml does not exist"),
        (("train",), {}, "0 items and 0 events that are actions"),
        (("import", "items", "/nowhere.csv"), {}, "/nowhere.csv"),
        (("demo", "--data", "/nowhere.zip"), {}, "no such file or folder"),
    ],
)
def test_errors_say_what_to_mend(
    arguments: tuple[str, ...], variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    text = run(*arguments, data_dir=tmp_path / "data", expect=2, **variables)
    assert message in text and "Traceback" not in text


def test_a_port_in_use_is_told_at_once(demo_data: tuple[Path, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = run("serve", "--port", str(port), data_dir=demo_data[0], expect=2)
    assert f"cannot listen on 127.0.0.1 port {port}" in text


def test_training_on_says_what_it_decided(demo_data: tuple[Path, str], tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(demo_data[0], data_dir)
    text = run("train", "ranking", "--incremental", data_dir=data_dir, expect=2)
    assert "0 events since those of ranking model" in text
    rows = [f"u{user},{1 + (7 * user + step) % 120},rating,{1 + step % 5},{(900_000_000 + 7200 * user + step) * 1000}"
            for user in range(160) for step in range(8)]  # fmt: skip
    ratings = tmp_path / "later.csv"
    ratings.write_text("\n".join(["user_id,item_id,type,value,ts", *rows]) + "\n")
    assert "1280 events imported" in run("import", "events", str(ratings), data_dir=data_dir)
    text = run("train", "ranking", "--incremental", "--margin", "1", data_dir=data_dir)
    decided = re.search(
        r"ranking (\S+) is current: NDCG@10 [\d.]+ against [\d.]+ of the active model on (\d+) sess", text
    )
    assert decided is not None
    current = json.loads((data_dir / "artifacts" / "ranking" / "current.json").read_text())
    assert current["version"] == decided[1] and len(current["previous"]) == 1
    assert "trains a ranker, not all" in run("train", "--incremental", data_dir=data_dir, expect=2)


def test_replay_prints_every_system_with_intervals(demo_data: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "replay.json"
    text = run("replay", "--test-share", "0.2", "--json", str(out), data_dir=demo_data[0])
    for system in ("popularity", "recency popularity (like.7d)", "retrieval only", "retrieval + ranking"):
        assert system in text
    protocols = json.loads(out.read_text())["protocols"]
    for name in ("sessions", "at the split"):
        for metrics in protocols[name]["systems"].values():
            for interval in metrics.values():
                assert 0.0 <= interval["low"] <= interval["value"] <= interval["high"]


def test_the_services_run_as_processes_as_compose_starts_them(demo_data: tuple[Path, str], tmp_path: Path) -> None:
    """The topology of docker-compose.yml: a Redis, `demo --prepare` once, then one process for each part."""
    films = demo_data[0].parent / "ml-100k.zip"
    data_dir = tmp_path / "data"
    server = EmbeddedServer(tmp_path / "redis")
    server.start(30_000)
    try:
        redis = {"SHORTLIST_REDIS_URL": server.url}
        shutil.copytree(demo_data[0] / "artifacts", data_dir / "artifacts")  # the models of the first demo do
        run("demo", "--prepare", "--data", str(films), data_dir=data_dir, **redis)
        with ExitStack() as stack:
            urls = {
                part: stack.enter_context(
                    started("serve", "--only", part, data_dir=data_dir, log=tmp_path / f"{part}.log", **redis)
                )
                for part in ("retrieval", "ranking", "ingest")
            }
            remotes = {f"SHORTLIST_{part.upper()}__URL": url for part, url in urls.items()}
            gateway = stack.enter_context(
                started(
                    "serve", "--only", "gateway", data_dir=data_dir, log=tmp_path / "gateway.log", **redis, **remotes
                )
            )
            client = stack.enter_context(httpx.Client(base_url=gateway, timeout=10.0))
            new = {"attributes": {"title": "Brand new", "genre": ["Action"], "year": 1998}}
            written = client.put("/v1/items/brand-new?wait_for=visible&timeout_ms=5000", json=new).json()
            assert written["visible"] and written["durable"]
            body = {"user_id": "7", "limit": 5, "filter": 'year = 1998 and genre = "Action"', "include": ["metadata"]}
            answer = client.post("/v1/recommendations", json=body).json()
            assert answer["degraded"] == []
            assert [item["metadata"]["title"] for item in answer["items"]] == ["Brand new"]
            assert len(client.get("/v1/users/7/recommendations?limit=5").json()["items"]) == 5
            assert "ready" in run("health", gateway, data_dir=data_dir)
    finally:
        server.stop()


def test_the_readmes_lines_work_as_printed(demo_data: tuple[Path, str], tmp_path: Path) -> None:
    """Every curl line of the README, in order, against the demo."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    lines = re.findall(r"^curl .*$", readme, re.M)
    assert len(lines) == 5
    data_dir = tmp_path / "data"
    shutil.copytree(demo_data[0], data_dir)
    with started("serve", data_dir=data_dir, log=tmp_path / "serve.log") as url:
        answers = []
        for line in lines:
            command = line.replace("http://127.0.0.1:8000", url).replace(
                "curl ", "curl --silent --show-error --fail ", 1
            )
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=20)
            assert done.returncode == 0, f"{command}\n{done.stderr}{done.stdout}"
            answers.append(json.loads(done.stdout))
    known, filtered, put, event, similar = answers
    assert len(known["items"]) == 10 and all(item["metadata"]["title"] for item in known["items"])
    assert known["cold_start"] is False
    assert all({"Sci-Fi", "Thriller"} & set(item["metadata"]["genre"]) for item in filtered["items"])
    assert all(item["metadata"]["year"] >= 1990 for item in filtered["items"])
    assert put["visible"] and event["accepted"] == 1 and len(similar["items"]) == 5

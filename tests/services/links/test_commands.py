"""Links as a person works with them: imported, mined, read, edited, audited."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from models.data.jobs.vocabulary import TINY
from models.data.jobs.world import JobsConfig
from models.retrieval.links.rows import Link, LinkFileError, MetaLink, read_links, write_links
from services.datasets.dataset import Dataset, DatasetError
from services.datasets.jobs import prepare_jobs
from services.folder import job_storage
from services.importing.run import run_import
from services.links.artifact import carry_edits, check_links, open_links
from services.links.commands import audit, edit_links, show_links
from services.settings import Settings
from services.training.data import NothingToTrainOn
from services.training.run import run_training

JOBS = Path(__file__).parents[3] / "configs" / "jobs.toml"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("jobs")
    config = JobsConfig(num_members=800, num_jobs=150, num_companies=20, mean_budget=60.0)
    files = prepare_jobs(folder / "files", TINY, config)
    settings = Settings(dataset=JOBS, data_dir=folder / "data")
    for kind in ("items", "users", "events"):
        report = run_import(settings, kind, getattr(files, kind))
        assert not report.num_rejected
    (outcome,) = run_training(settings, ("links",))
    assert outcome.kind == "links" and outcome.decision.promoted
    yield settings


def text_of(shown: object) -> str:
    file = io.StringIO()
    Console(width=250, file=file).print(shown)
    return file.getvalue()


def current(settings: Settings) -> tuple[str, list[Link]]:
    with job_storage(settings, "test") as storage:
        artifact, links = open_links(storage.artifacts)
        assert artifact.provenance.data_window_ms is not None and artifact.provenance.metrics["hires"] > 50
        return artifact.version, links


def test_links_are_mined_and_shown(settings: Settings, tmp_path: Path) -> None:
    _, links = current(settings)
    assert len(links) > 10
    shown = text_of(show_links(settings, user=None, item=None, version=None, limit=5, out=None))
    heaviest = max(links, key=lambda link: link.weight)
    assert heaviest.text in shown and f"5 of {len(links)} links" in shown
    of_user = text_of(show_links(settings, user="member-000003", item=None, version=None, limit=500, out=None))
    of_item = text_of(show_links(settings, user=None, item="job-000003", version=None, limit=500, out=None))
    assert of_user != of_item and "->" in of_item
    show_links(settings, user=None, item=None, version=None, limit=5, out=tmp_path / "links.jsonl")
    assert {link.id for link in read_links(tmp_path / "links.jsonl")} == {link.id for link in links}
    for wrong in ({"user": "nobody"}, {"item": "nothing"}, {"version": "v0"}):
        with pytest.raises(LinkFileError):
            show_links(settings, **({"user": None, "item": None, "version": None} | wrong), limit=1, out=None)


def test_edits_become_current_and_stay_when_links_are_mined_anew(settings: Settings, tmp_path: Path) -> None:
    before, links = current(settings)
    first, second, third = links[:3]
    said = edit_links(settings, file=None, off=[first.id], on=[], weights=[f"{second.id}=9.5"])
    assert "2 changed" in said and f"~ {first.text}" in said
    path = tmp_path / "links.jsonl"
    added = Link(pairs=(MetaLink("title", "cook", "title", "nurse"),), weight=1.0)
    write_links(path, [*(link for link in current(settings)[1] if link.id != third.id), added])
    assert "1 added, 1 switched off, 0 changed" in edit_links(settings, file=path, off=[], on=[], weights=[])
    run_training(settings, ("links",))
    after, mined = current(settings)
    assert after != before
    by_id = {link.id: link for link in mined}
    assert not by_id[first.id].enabled and not by_id[third.id].enabled
    assert by_id[second.id].weight == 9.5 and by_id[added.id].origin == "edited"
    again = edit_links(settings, file=None, off=[], on=[first.id], weights=[])
    assert "1 changed" in again
    assert "nothing differs" in edit_links(settings, file=None, off=[], on=[], weights=[])


def test_wrong_edits_are_refused_and_change_nothing(settings: Settings, tmp_path: Path) -> None:
    before = current(settings)[0]
    path = tmp_path / "links.jsonl"
    for link, message in (
        (Link(pairs=(MetaLink("tittle", "cook", "title", "cook"),), weight=1.0), "no user attribute 'tittle'"),
        (Link(pairs=(MetaLink("title", "cook", "headline", "cook"),), weight=1.0), "no item attribute 'headline'"),
        (Link(pairs=(MetaLink("title", 3, "title", "cook"),), weight=1.0), "can be 3"),
    ):
        write_links(path, [link])
        with pytest.raises(LinkFileError, match=message):
            edit_links(settings, file=path, off=[], on=[], weights=[])
    with pytest.raises(LinkFileError, match="there is no link 'abc'"):
        edit_links(settings, file=None, off=["abc"], on=[], weights=[])
    with pytest.raises(LinkFileError, match="expected ID=NUMBER"):
        edit_links(settings, file=None, off=[], on=[], weights=[f"{current(settings)[1][0].id}=heavy"])
    assert current(settings)[0] == before


def test_an_audit_counts_every_link(settings: Settings, tmp_path: Path) -> None:
    links = current(settings)[1]
    nobody = Link(pairs=(MetaLink("title", "astronaut 🙂 [bold]", "title", "pilot"),), weight=1.0)
    path = tmp_path / "links.jsonl"
    write_links(path, [*links, nobody])
    edit_links(settings, file=path, off=[], on=[], weights=[])
    table = text_of(audit(settings, limit=500, json_file=tmp_path / "audit.jsonl"))
    assert "reaches no item; holds of no member" in table and "astronaut 🙂 [bold] ->" in table
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())}
    assert len(rows) == len(links) + 1
    for link in links:
        if link.origin == "mined":
            assert (rows[link.id]["hires"], rows[link.id]["refusals"]) == (link.hires, link.refusals)
            assert rows[link.id]["reach"] == link.reach


def test_without_links_it_says_what_to_do(tmp_path: Path) -> None:
    empty = Settings(dataset=JOBS, data_dir=tmp_path / "data")
    with pytest.raises(LinkFileError, match="shortlist train links"):
        show_links(empty, user=None, item=None, version=None, limit=1, out=None)
    with pytest.raises(NothingToTrainOn):
        run_training(empty, ("links",))


def test_the_section_is_checked() -> None:
    text = JOBS.read_text()
    for old, new, message in (
        ('confirmed = "hire"', 'confirmed = "hired"', 'did you mean "hire"'),
        ('{ member = "title", item = "title" }', '{ member = "title", item = "headline" }', "expected one of title"),
        ('item = "region" }', 'item = "region", sme = true }', "templates.3.sme = true: unknown key"),
        ('refused = "apply"', 'refused = "apply"\npending = "soon"', "links.pending"),
    ):
        assert old in text
        with pytest.raises(DatasetError, match=message):
            Dataset.parse(text.replace(old, new))


def test_edits_win_over_what_is_mined() -> None:
    pair = MetaLink("title", "a", "title", "b")
    old = [Link(pairs=(pair,), weight=1.0).edited(weight=3.0), Link(pairs=(pair, pair._replace(value="c")), weight=1.0)]
    mined = [Link(pairs=(pair,), weight=2.0), Link(pairs=(pair._replace(value="d"),), weight=1.0)]
    assert carry_edits(old, mined) == [old[0], mined[1]]
    check_links([], Dataset.load(JOBS))

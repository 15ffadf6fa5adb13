"""`shortlist prompt show`: the exact text, from a data folder, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.decoder.verbalizer.task import TaskError
from models.decoder.verbalizer.verbalizer import Verbalizer
from services.cli import app
from services.clock import Clock
from services.datasets.dataset import Dataset
from services.datasets.movielens import prepare_movielens
from services.folder import job_storage, save_clock
from services.importing.run import import_file
from services.llm.pretrained import fetch_smollm2
from services.llm.prompt import PromptError, show_prompt
from services.settings import Settings
from services.storage.artifacts import Provenance
from tests.models.decoder.tiny import tiny_tokenizer
from tests.services.films import DAY_S, FIRST_S, write_ml_100k

DATASET = Path(__file__).parents[3] / "configs" / "movielens.toml"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A data folder with films, members and ratings, and a model of which only the tokenizer is there."""
    folder = tmp_path_factory.mktemp("prompt")
    settings = Settings(data_dir=folder / "data", dataset=DATASET)
    dataset = Dataset.load(DATASET)
    with job_storage(settings, "test") as storage:
        files = prepare_movielens(folder / "source", write_ml_100k(folder / "ml-100k.zip", num_users=30, num_items=40))
        for kind in ("items", "users", "events"):
            import_file(storage, dataset, kind, getattr(files, kind))
        version = storage.artifacts.publish("llm", tiny_tokenizer().save, Provenance())
        storage.artifacts.promote("llm", version)
    save_clock(settings.data_dir, Clock.starting_at((FIRST_S + 130 * DAY_S) * 1000))
    yield settings


def test_the_text_is_what_the_decoder_reads_and_its_tokens_are_counted(settings: Settings) -> None:
    shown = show_prompt(settings, "7", "3")
    parts = {part.name: part for part in shown.prompt.parts}
    assert parts["instruction"].text.startswith("Films that a member of a film site watched")
    assert parts["member"].text == "\nMember: 26 years old, gender M, writer."
    assert shown.prompt.num_entries >= 1
    assert parts["history"].text.count("\n=> ") == shown.prompt.num_entries
    assert shown.item.text.startswith("\n- Film 3 (1982), ")
    for part in (*shown.prompt.parts, shown.item, *shown.questions):
        assert tiny_tokenizer().decode(part.tokens) == part.text
    text = shown.text()
    assert f"prompt version {shown.verbalizer.version}" in text and "tokens of llm " in text
    assert f"--- member: {len(parts['member'].tokens)} tokens\n\nMember: 26" in text
    total = sum(len(part.tokens) for part in (*shown.prompt.parts, shown.item, *shown.questions))
    assert f"--- {total} tokens; the answer is ' Yes'" in text


def test_tasks_styles_and_strangers(settings: Settings) -> None:
    rate = show_prompt(settings, "7", "3", "rate")
    assert "--- question like" in rate.text() and "--- question love" in rate.text()
    terse = show_prompt(settings, "7", "3", style="terse")
    assert "--- question: " in terse.text()
    assert terse.prompt.num_entries >= show_prompt(settings, "7", "3").prompt.num_entries
    stranger = show_prompt(settings, "nobody", "3")
    assert stranger.prompt.num_entries == 0 and stranger.prompt.newest_ms is None
    assert stranger.prompt.parts[1].text == "\nMember:."


def test_what_is_not_there_is_said(settings: Settings) -> None:
    with pytest.raises(PromptError, match="no item '4000' among the 40"):
        show_prompt(settings, "7", "4000")
    with pytest.raises(PromptError, match="no task 'lik'.*did you mean \"like\""):
        show_prompt(settings, "7", "3", "lik")
    with pytest.raises(TaskError, match="expected one question"):
        show_prompt(settings, "7", "3", "rate", "terse")


def test_the_command_prints_it(settings: Settings) -> None:
    environment = {"SHORTLIST_DATA_DIR": str(settings.data_dir), "SHORTLIST_DATASET": str(DATASET)}
    arguments = ["prompt", "show", "--user", "7", "--item", "3"]
    shown = CliRunner().invoke(app, arguments, env=environment)
    assert shown.exit_code == 0, shown.output
    assert "Film 3 (1982)" in shown.stdout and "the answer is ' Yes'" in shown.stdout
    refused = CliRunner().invoke(app, [*arguments, "--task", "lik"], env=environment)
    assert refused.exit_code == 2 and 'did you mean "like"' in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["movielens", "completejourney"])
def test_the_tasks_can_be_said_in_the_pretrained_tokens(name: str) -> None:
    from models.decoder.tokenizer import Tokenizer

    dataset = Dataset.load(DATASET.with_name(f"{name}.toml"))
    tokenizer = Tokenizer.from_folder(fetch_smollm2())
    for task in dataset.task_prompts():
        asker = Verbalizer(task, tokenizer, dataset.feature_schema())
        assert len(asker.prefix({}, [], 0).tokens) < 100

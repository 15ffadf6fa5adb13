"""The `shortlist` command: every job's entry point, and the only place that reads settings and files of settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

# Waiting OpenMP threads must sleep: spinning ones take the cores from the other pools. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from services.settings import Settings

app = typer.Typer(
    name="shortlist",
    help="Recommendations: exact filtered retrieval over a live index, a calibrated ranker, one HTTP gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
prompts = typer.Typer(help="What the language model is asked.", no_args_is_help=True)
app.add_typer(prompts, name="prompt")
links = typer.Typer(
    name="links", help="Learned links: read them, change them, see what they are worth.", no_args_is_help=True
)
app.add_typer(links)
console = Console()
errors = Console(stderr=True)

Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file (TOML). Default: $SHORTLIST_CONFIG, else the built-in defaults."),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Local MovieLens-100k: the wheel, the official folder or zip. Default: download."),
]


class Kind(StrEnum):
    """What a file holds."""

    items = "items"
    users = "users"
    events = "events"


class Model(StrEnum):
    """What to train."""

    retrieval = "retrieval"
    ranking = "ranking"
    llm = "llm"
    links = "links"
    all = "all"


@app.command()
def demo(
    data: Data = None,
    once: Annotated[bool, typer.Option("--once", help="Send a few requests, print the answers, exit.")] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="Download, import, train, index; then exit.")] = False,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    config: Config = None,
) -> None:
    """MovieLens-100k from download to answers: import, train, index, serve. What is done already is not done again."""
    from services import demo as job

    with reported():
        settings = job.settings_of(load(config, port=port))
        job.prepare(settings, data, console)
        if once:
            job.show_once(settings, console)
        elif not prepare:
            job.serve(settings, console)


@app.command()
def serve(
    only: Annotated[
        str | None,
        typer.Option(help="Parts, separated by commas: gateway, retrieval, ranking, llm, ingest. Default: all."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    config: Config = None,
) -> None:
    """Serve the platform, or some of its parts, from the data folder."""
    from services.serving import serve as run

    with reported():
        settings = load(config, host=host, port=port)
        parts = None if only is None else {part.strip() for part in only.split(",") if part.strip()}
        run(settings, parts)


@app.command("import")
def import_(
    kind: Annotated[Kind, typer.Argument(help="What the file holds.")],
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON Lines; .csv.gz and .jsonl.gz too.")],
    force: Annotated[bool, typer.Option("--force", help="Read the file again even if it was imported before.")] = False,
    config: Config = None,
) -> None:
    """Import items, users or events; every rejected row is reported with row, column, value and reason.

    Exits with 1 if a row was rejected; what was good is imported all the same.
    """
    from services.bars import Bars
    from services.importing.run import run_import, show_report

    with reported():
        settings = load(config)
        with Bars(console) as bars:
            report = run_import(settings, kind.value, file, force=force, progress=bars)
        show_report(report, console)
        if report.num_rejected:
            raise typer.Exit(1)


@app.command()
def train(
    model: Annotated[Model, typer.Argument(help="What to train.")] = Model.all,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Train the current ranker on, over the events after its own.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Make the ranker current whatever the comparison says.")
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0.0, help="How much lower than the current ranker's the new one's NDCG@10 may be.")
    ] = 0.01,
    config: Config = None,
) -> None:
    """Train on everything imported and logged so far, and publish the models.

    `all` is both models, and links where the dataset has a [links] section.
    A retrieval model becomes current, and so do links and a first ranker. Another ranker does if it is not worse, by
    more than the margin, than the current one in a replay of the newest events since that one was trained; neither is
    trained on those. Exits with 1 if it does not become current.
    A job that was cut short goes on where it was when it is started again with the same data.
    "llm" fine-tunes a small pretrained language model on the dataset's tasks; it takes about ten minutes of two cores
    and is not part of "all". It becomes current if it tells held-out members' answers apart at all.
    """
    from services.bars import Bars
    from services.training.promotion import GateConfig
    from services.training.run import run_training

    with reported():
        if incremental and model is not Model.ranking:
            raise typer.BadParameter(f"--incremental trains a ranker, not {model.value}: shortlist train ranking")
        settings = load(config)
        kinds = () if model is Model.all else (model.value,)
        with Bars(console) as bars:
            outcomes = run_training(
                settings, kinds, incremental=incremental, config=GateConfig(margin=margin, force=force), progress=bars
            )
        for outcome in outcomes:
            state = "is current" if outcome.decision.promoted else "is published and not current"
            console.print(
                f"{outcome.kind} {outcome.version} {state}: {outcome.decision.reason}",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
        if not all(outcome.decision.promoted for outcome in outcomes):
            raise typer.Exit(1)


@app.command()
def replay(
    test_share: Annotated[float, typer.Option(help="Share of the events, the newest, that is the test window.")] = 0.1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file too.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of training and of the intervals.")] = 0,
    config: Config = None,
) -> None:
    """Judge the pipeline offline: train before a global split, then rank at every request of the test window.

    Nothing from the future is visible; the full catalogue alive at that instant is ranked. Prints recall, NDCG and
    DCG with 95 % intervals (bootstrap by member) beside popularity and recency popularity.
    """
    from services.bars import Bars
    from services.replay.run import run_replay

    with reported():
        settings = load(config)
        with Bars(console) as bars:
            text = run_replay(settings, test_share=test_share, seed=seed, json_file=json_file, progress=bars)
        console.print(text, highlight=False, markup=False, soft_wrap=True)


@prompts.command("show")
def show_prompt(
    user: Annotated[str, typer.Option(help="Id of a member; one of whom nothing is known has no history.")],
    item: Annotated[str, typer.Option(help="Id of the item that is asked about.")],
    task: Annotated[
        str | None, typer.Option(help="Task of the dataset's description. Default: the ranking one.")
    ] = None,
    style: Annotated[str | None, typer.Option(help="inline, terse or grouped. Default: the task's own.")] = None,
    config: Config = None,
) -> None:
    """Print the exact text that the language model is asked with, part by part, with tokens counted and its version.

    As of now, from the data folder; no weights are needed, only a tokenizer: the trained model's, else the pretrained
    one's, which is downloaded once.
    """
    from services.llm.prompt import show_prompt as run

    with reported():
        shown = run(load(config), user, item, task, style)
        console.print(shown.text(), highlight=False, markup=False, soft_wrap=True)


@links.command("show")
def links_show(
    user: Annotated[str | None, typer.Option(help="Only the links that hold of this user's profile.")] = None,
    item: Annotated[str | None, typer.Option(help="Only the links that reach this item.")] = None,
    version: Annotated[str | None, typer.Option(help="A version other than the current one.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 40,
    out: Annotated[Path | None, typer.Option(help="Write all of them to this file, JSON Lines, to be edited.")] = None,
    config: Config = None,
) -> None:
    """Print the learned links, the heaviest first, or write them to a file."""
    from services.links.commands import show_links

    with reported():
        console.print(show_links(load(config), user=user, item=item, version=version, limit=limit, out=out))


@links.command("edit")
def links_edit(
    file: Annotated[Path | None, typer.Argument(help="Links as `show --out` writes them, edited.")] = None,
    off: Annotated[list[str] | None, typer.Option(help="Id of a link to switch off; may be given again.")] = None,
    on: Annotated[list[str] | None, typer.Option(help="Id of a link to switch on.")] = None,
    weight: Annotated[list[str] | None, typer.Option(help="A weight to set: ID=NUMBER.")] = None,
    config: Config = None,
) -> None:
    """Change links: the result becomes current, and stays when links are mined anew. A link gone from the file is
    switched off. Services take it into use by themselves.
    """
    from services.links.commands import edit_links

    with reported():
        text = edit_links(load(config), file=file, off=off or [], on=on or [], weights=weight or [])
        console.print(text, highlight=False, markup=False, soft_wrap=True)


@links.command("audit")
def links_audit(
    limit: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 40,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every link's counts to this file.")] = None,
    config: Config = None,
) -> None:
    """Count every link on what is stored now, and print those that a person should look at."""
    from services.links.commands import audit

    with reported():
        console.print(audit(load(config), limit=limit, json_file=json_file))


@app.command()
def health(
    url: Annotated[str, typer.Argument(help="Base URL of a process, like http://127.0.0.1:8000.")],
) -> None:
    """Ask a process whether it is ready; exits with 1 and says what it waits for if it is not."""
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=3.0)
    except httpx.HTTPError as error:
        errors.print(f"{url}: {error}")
        raise typer.Exit(1) from None
    console.print(answer.text, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if answer.status_code == 200 else 1)


def load(config: Path | None, *, host: str | None = None, port: int | None = None) -> Settings:
    """Settings from file and variables, with what the command line says on top."""
    from services.settings import load_settings

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = load_settings(config, os.environ)
    return settings.model_copy(update={"http": settings.http.model_copy(update=given)})


@contextmanager
def reported() -> Iterator[None]:
    """Errors that a person can mend become one message and exit status 2; anything else keeps its traceback."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _mendable()):
            raise
        errors.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise typer.Exit(2) from None


def _mendable() -> tuple[type[Exception], ...]:
    # Imported only when something went wrong: most of them live beside torch.
    from models.decoder.tokenizer import TokenizerError
    from models.decoder.verbalizer.task import TaskError
    from models.decoder.verbalizer.verbalizer import BudgetError
    from models.retrieval.links.rows import LinkFileError
    from services.datasets.dataset import DatasetError
    from services.datasets.downloads import DownloadError
    from services.datasets.movielens import MovieLensError
    from services.importing import ImportFileError
    from services.llm.prompt import PromptError
    from services.platform import PlatformError
    from services.settings import SettingsError
    from services.storage.errors import StorageError
    from services.training.data import NothingToTrainOn

    return (
        BudgetError,
        DatasetError,
        DownloadError,
        ImportFileError,
        LinkFileError,
        MovieLensError,
        NothingToTrainOn,
        PlatformError,
        PromptError,
        SettingsError,
        StorageError,
        TaskError,
        TokenizerError,
    )


if __name__ == "__main__":
    app()

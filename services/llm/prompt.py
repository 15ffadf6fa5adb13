"""The text that the decoder is asked with, of one member and one item: what `shortlist prompt show` prints.

Needs a data folder and a tokenizer, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from models.data.state import History
from models.decoder.model import KIND
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.numbers import Standing
from models.decoder.verbalizer.task import Interaction, TaskPrompt
from models.decoder.verbalizer.verbalizer import Prompt, Verbalizer
from models.decoder.verbalizer.writing import Piece
from services.datasets.dataset import Dataset
from services.datasets.descriptions import listed, nearest
from services.folder import job_storage
from services.llm.pretrained import NAME, fetch_smollm2
from services.settings import Settings
from services.storage.documents import Document
from services.storage.storage import Storage


class PromptError(ValueError):
    """There is nothing to show; the message says why."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One prompt, part by part, and what its answers are."""

    verbalizer: Verbalizer
    tokenizer: str
    """Where it comes from."""
    prompt: Prompt
    item: Piece
    questions: list[Piece]

    def text(self) -> str:
        """Return every part under a line that names it and counts its tokens. A part's own text is as it is read:
        it may begin with line breaks."""
        task, dropped = self.verbalizer.task, self.prompt.dropped
        labels = self.verbalizer.labels
        lines = [
            f"task {task.name}, style {task.style}, prompt version {self.verbalizer.version}, tokens of "
            f"{self.tokenizer}"
        ]
        for part in self.prompt.parts:
            lines += [f"--- {part.name}: {len(part.tokens)} tokens", part.text]
        lines[-2] += (
            f", {self.prompt.num_entries} entries; left out: {dropped.other_actions} without an action of the task, "
            f"{dropped.max_entries} beyond max_entries, {dropped.budget} beyond max_tokens"
        )
        lines += [f"--- item: {len(self.item.tokens)} tokens", self.item.text]
        for name, question in zip(self.verbalizer.questions, self.questions, strict=True):
            lines += [f"--- question {name}: {len(question.tokens)} tokens", question.text]
        total = len(self.prompt.tokens) + len(self.item.tokens) + sum(len(one.tokens) for one in self.questions)
        lines.append(
            f"--- {total} tokens; the answer is {task.yes!r} (token {labels.yes}) or {task.no!r} (token {labels.no})"
        )
        return "\n".join(lines)


def show_prompt(
    settings: Settings, user_id: str, item_id: str, task_name: str | None = None, style: str | None = None
) -> Shown:
    """Return the prompt as of the data folder's now.

    task_name: None: the ranking task.  style: None: the task's.

    Raises PromptError for a task or an item that is none and a dataset without tasks; TaskError for a style that is
    none or cannot say the task; DownloadError where there is no tokenizer to be had.
    """
    dataset = Dataset.load(settings.dataset)
    task = _chosen(dataset, task_name)
    schema = dataset.feature_schema()
    with job_storage(settings, "prompt") as storage:
        tokenizer, named = _tokenizer(storage)
        verbalizer = Verbalizer(task if style is None else replace(task, style=style), tokenizer, schema)
        items = {document.key: document for document in storage.items.scan()}
        item = next((document for document in items.values() if document.id == item_id), None)
        if item is None:
            raise PromptError(f"there is no item {item_id!r} among the {len(items)} in {storage.data_dir}")
        user, now_ms = storage.state.hydrate(user_id), storage.clock.now_ms()
        keys = np.fromiter(items, dtype=np.int64, count=len(items))
        signals_NS = storage.popularity.values(schema.signals, keys, now_ms)
        percentiles = verbalizer.percentiles(signals_NS)
        standings = dict(zip(items, map(percentiles.standing, signals_NS), strict=True))
        history = _interactions(user.history, items, standings)
        prompt = verbalizer.prefix(user.profile, history, now_ms)
        body, questions = verbalizer.candidate_pieces(item.attributes, standings[item.key], now_ms, prompt.newest_ms)
        return Shown(verbalizer, named, prompt, body, questions)


def _chosen(dataset: Dataset, name: str | None) -> TaskPrompt:
    tasks = {task.name: task for task in dataset.task_prompts()}
    if not tasks:
        raise PromptError(f"the dataset {dataset.name} declares no tasks: its description has no [llm]")
    if name is not None and name not in tasks:
        raise PromptError(f"there is no task {name!r}; expected one of {listed(tasks)}{nearest(name, tasks)}")
    return next(iter(tasks.values())) if name is None else tasks[name]


def _tokenizer(storage: Storage) -> tuple[Tokenizer, str]:
    """Return the active model's, else the pretrained one's."""
    version = storage.artifacts.current(KIND)
    if version is None:
        return Tokenizer.from_folder(fetch_smollm2()), NAME
    return Tokenizer.from_folder(storage.artifacts.open(KIND, version, verify=False).folder), f"{KIND} {version}"


def _interactions(
    history: History, items: Mapping[int, Document], standings: Mapping[int, Standing]
) -> list[Interaction]:
    """Return the history in words' terms, oldest first; of items that are gone nothing can be told."""
    order = np.argsort(history.ts_ms, kind="stable")
    columns = (history.keys[order], history.actions[order], history.ts_ms[order])
    return [
        Interaction(items[key].attributes, actions, ts_ms, standings[key])
        for key, actions, ts_ms in zip(*(column.tolist() for column in columns), strict=True)
        if key in items
    ]

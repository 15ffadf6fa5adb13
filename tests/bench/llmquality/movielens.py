"""MovieLens-100k in words: a rated film was before the member, liking it (4 or 5 stars) is the answer.

Global split by time: the oldest 85 % of the ratings train every model, the next 5 % tune, calibrate and weigh, and the
newest 10 % judge. Everything told of a film or a member at an instant is from strictly earlier ratings.
"""

# n = ratings

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.schema import FeatureSchema
from models.decoder.exposures import ExposureConfig, Exposures, find_exposures
from models.decoder.network import Decoder
from models.decoder.rehearsal import RehearsalConfig, rehearse
from models.decoder.sequences import Conversation, Lesson
from models.decoder.telling import interactions_of, tell
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.task import Interaction, TaskPrompt
from models.decoder.verbalizer.verbalizer import Verbalizer
from services.datasets.dataset import Dataset
from services.datasets.movielens import prepare_movielens
from services.keys import keys_of

CONFIG = Path(__file__).parents[3] / "configs" / "movielens.toml"
TRAIN, TEST = 0.85, 0.90


@dataclass(frozen=True, slots=True, kw_only=True)
class Films:
    schema: FeatureSchema
    tasks: Mapping[str, TaskPrompt]
    users: Mapping[int, Mapping[str, object]]
    exposures: Exposures
    """Every rating, in order of time; its label is whether the film was liked."""
    interactions: Sequence[Interaction]
    length: NDArray[np.int64]
    """int64[n]: ratings of the member strictly before."""
    rate: NDArray[np.float64]
    """float64[n]: the film's smoothed share of likes, strictly before."""
    validation_ms: int
    test_ms: int

    @classmethod
    def read(cls, folder: Path) -> Films:
        """Build it; the files are written to `folder`."""
        files = prepare_movielens(folder)
        dataset = Dataset.load(CONFIG)
        schema = dataset.feature_schema()
        films, people, ratings = (pq.read_table(path) for path in (files.items, files.users, files.events))
        items = dict(zip(keys_of(films["item_id"].to_pylist()).tolist(), films.to_pylist(), strict=True))
        users = dict(zip(keys_of(people["user_id"].to_pylist()).tolist(), people.to_pylist(), strict=True))
        events = EventTable.from_columns(
            schema,
            user_keys=keys_of(ratings["user_id"].to_pylist()),
            item_keys=keys_of(ratings["item_id"].to_pylist()),
            types=ratings["type"].to_pylist(),
            values=ratings["value"].to_numpy(),
            ts_ms=ratings["ts"].cast("int64").to_numpy(),
        )
        tasks = {task.name: task for task in dataset.task_prompts()}
        exposures = find_exposures(schema, events, "like", ExposureConfig(exposed=("watch",), horizon_ms=0))
        interactions = interactions_of(schema, items, events, exposures, tasks["like"].numbers)
        rates = [one.signals.value(("like.all", "watch.all")) if one.signals else None for one in interactions]
        mean = float(exposures.labels[: len(exposures) // 2].mean())
        return cls(
            schema=schema,
            tasks=tasks,
            users=users,
            exposures=exposures,
            interactions=interactions,
            length=_lengths(exposures),
            rate=np.array([mean if rate is None else rate for rate in rates]),
            validation_ms=events.quantile_ms(TRAIN),
            test_ms=events.quantile_ms(TEST),
        )

    def lesson(self, task: TaskPrompt, tokenizer: Tokenizer, before_ms: int) -> Lesson:
        """Return what members did before an instant, told by a task."""
        stop = int(np.searchsorted(self.exposures.ts_ms, before_ms))
        verbalizer = Verbalizer(task, tokenizer, self.schema)
        told = tell(verbalizer, self.users, self.exposures.take(slice(0, stop)), self.interactions[:stop])
        return Lesson([conversation for conversation, _ in told], verbalizer.labels.yes, verbalizer.labels.no)

    def score(
        self,
        decoder: Decoder,
        task: TaskPrompt,
        tokenizer: Tokenizer,
        config: RehearsalConfig,
        *,
        since_ms: int | None = None,
        wanted: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """Return float64[n]: the decoder's score of every rating since an instant (the test window's by default).

        wanted: bool[n]: leave members without a wanted rating out, and what comes after a member's last one; nan where
        nothing was scored. The task must tell every rating, in one conversation a member.
        """
        since_ms = self.test_ms if since_ms is None else since_ms
        everything = replace(task, history=replace(task.history, max_entries=1_000_000))
        verbalizer = Verbalizer(everything, tokenizer, self.schema)
        scores = np.full(len(self.exposures), np.nan)
        for rows in self.exposures.by_member():
            asked = self.exposures.ts_ms[rows] >= since_ms
            if wanted is not None:
                asked &= wanted[rows]
            places = np.flatnonzero(asked)
            if not len(places):
                continue
            last_ms = self.exposures.ts_ms[rows[places[-1]]]
            stop = int(np.searchsorted(self.exposures.ts_ms[rows], last_ms, side="right"))
            first = int(np.searchsorted(self.exposures.ts_ms[rows], self.exposures.ts_ms[rows[places[0]]]))
            member = self.users.get(int(self.exposures.user_keys[rows[0]]), {})
            told = verbalizer.conversations(member, [self.interactions[row] for row in rows[:stop].tolist()])
            if len(told) != 1 or len(told[0].turns) != stop:
                raise ValueError(f"task {task.name!r} does not ask about every rating; expected one conversation")
            labels = verbalizer.labels
            conversation = Conversation(told[0].opening, told[0].turns)
            scores[rows[first:stop]] = rehearse(decoder, conversation, labels.yes, labels.no, config, first=first)
        return scores


def _lengths(exposures: Exposures) -> NDArray[np.int64]:
    """Return for every rating how many ratings of its member are strictly older."""
    lengths = np.zeros(len(exposures), dtype=np.int64)
    for rows in exposures.by_member():
        times_ms = exposures.ts_ms[rows]
        lengths[rows] = np.searchsorted(times_ms, times_ms, side="left")
    return lengths

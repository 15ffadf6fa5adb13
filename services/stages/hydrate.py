"""hydrate: who asks? Profile, history and seen items; a user nothing is known of where storage does not say in time."""

from __future__ import annotations

import numpy as np

from models.data.state import UserState
from services.ingest.visibility import Visibility
from services.query import Failure, Person, Query, Trace, no_keys
from services.storage.state import Hydrated
from services.storage.storage import Storage
from services.workers import Workers


class Hydrate:
    """Reads the user's state, after the writes that the request must see."""

    def __init__(self, storage: Storage, workers: Workers, visibility: Visibility) -> None:
        self._storage = storage
        self._workers = workers
        self._visibility = visibility

    async def __call__(self, query: Query, trace: Trace) -> Person:
        async def wait(left_ms: float) -> bool:
            # Half of the stage's time, so that the state before those writes can still be read.
            return await self._visibility.wait(query.positions, left_ms / 2)

        async def load(_: float) -> Person:
            return await self._load(query)

        if query.positions and await trace.attempt("hydrate", wait) is not True:
            waited = ", ".join(map(str, query.positions))
            failure = Failure(f"not everything up to {waited} was applied in time", "not_visible")
            trace.degrade("hydrate", failure, "the state before it")
        person = await trace.attempt("hydrate", load)
        if isinstance(person, Failure):
            trace.degrade("hydrate", person, "a user nothing is known of")
            return Person(state=UserState(), seen=no_keys(), cold=True)
        return person

    async def _load(self, query: Query) -> Person:
        if query.user_id is not None:
            hydrated: Hydrated = await self._workers.run(self._storage.state.hydrate, query.user_id)
            cold = not hydrated.known and not len(hydrated.history)
            return Person(state=hydrated.state, seen=hydrated.seen, cold=cold)
        if query.session is not None and len(query.session):
            state = UserState({}, query.session)
            return Person(state=state, seen=np.unique(query.session.keys), cold=False)
        return Person(state=UserState(), seen=no_keys(), cold=True)

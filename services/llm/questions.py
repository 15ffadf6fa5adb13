"""From a wire request to a call of the LLM ranker: everything about it is checked here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.data.schema import FeatureSchema
from models.data.state import UserState
from services.clock import Clock
from services.datasets.attribute_values import BadValue, check_timestamp
from services.datasets.dataset import Dataset, SchemaViolation
from services.keys import key_of
from services.llm.calls import Asked, ScoreCall, Told
from services.llm.client import LlmClient
from services.llm.wire import HistoryEntry, MemberIn, ScoreItem, ScoreRequest
from services.problems import Problem, brief, error_entry, invalid
from services.storage.storage import Storage
from services.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreQuestions:
    """What /v1/score works with."""

    client: LlmClient
    dataset: Dataset
    schema: FeatureSchema
    storage: Storage
    clock: Clock
    workers: Workers

    async def make(self, request: ScoreRequest) -> tuple[ScoreCall, bool]:
        """The call of a request, and whether nothing is known of its member. Raises Problem that points at what is
        wrong, StorageError."""
        if (request.user_id is None) == (request.member is None):
            raise invalid("/user_id" if request.user_id is None else "/member", "expected either user_id or member")
        return await self.workers.run(self._make, request)

    def _make(self, request: ScoreRequest) -> tuple[ScoreCall, bool]:
        now_ms = self.clock.now_ms()
        told = None
        if request.user_id is not None:
            hydrated = self.storage.state.hydrate(request.user_id)
            user = hydrated.state
            cold = not hydrated.known and not len(hydrated.history)
        else:
            assert request.member is not None
            user, told = self._member(request.member)
            cold = not user.profile and not told
        call = ScoreCall(
            task=request.task,
            user=user,
            told=told,
            items=self._items(request.items),
            now_ms=now_ms,
            with_mass=request.label_mass,
        )
        return call, cold

    def _member(self, member: MemberIn) -> tuple[UserState, list[Told]]:
        profile = _checked(lambda: self.dataset.validate_user(member.attributes), "/member/attributes")
        found = self._documents(
            [
                (entry.item_id, entry.attributes, f"/member/history/{n}", "item_id")
                for n, entry in enumerate(member.history)
            ]
        )
        told = [
            Told(key=key, attributes=attributes, actions=self._mask(entry, place), ts_ms=_time(entry, place))
            for place, (entry, (key, attributes)) in enumerate(zip(member.history, found, strict=True))
        ]
        return UserState(profile), told

    def _items(self, items: Sequence[ScoreItem]) -> list[Asked]:
        found = self._documents([(item.id, item.attributes, f"/items/{n}", "id") for n, item in enumerate(items)])
        return [Asked(key=key, attributes=attributes) for key, attributes in found]

    def _documents(
        self, wanted: Sequence[tuple[str | None, dict[str, Any] | None, str, str]]
    ) -> list[tuple[int | None, Mapping[str, Any]]]:
        """Key and attributes of (id, attributes, pointer, the id's name): stored items by id, others as they are."""
        for id_, attributes, pointer, name in wanted:
            if (id_ is None) == (attributes is None):
                raise invalid(pointer, f"expected either {name} or attributes")
        ids = [id_ for id_, *_ in wanted if id_ is not None]
        documents = dict(zip(ids, self.storage.items.get_many(ids), strict=True)) if ids else {}
        missing = [
            error_entry(f"{pointer}/{name}", f"no item {id_!r}", value=id_)
            for id_, _, pointer, name in wanted
            if id_ is not None and documents[id_] is None
        ]
        if missing:
            raise Problem(422, "unknown-item", f"{len(missing)} of the ids are no items", errors=missing)
        found: list[tuple[int | None, Mapping[str, Any]]] = []
        for id_, attributes, pointer, _ in wanted:
            if id_ is None:
                given = attributes or {}
                checked = _checked(lambda given=given: self.dataset.validate_item(given), f"{pointer}/attributes")  # type: ignore[misc]
                found.append((None, checked))
                continue
            document = documents[id_]
            assert document is not None
            found.append((key_of(id_), document.attributes))
        return found

    def _mask(self, entry: HistoryEntry, place: int) -> int:
        names = [action.name for action in self.schema.actions]
        mask = 0
        for number, action in enumerate(entry.actions):
            if action not in names:
                near = difflib.get_close_matches(action, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
                pointer = f"/member/history/{place}/actions/{number}"
                raise invalid(pointer, f"{action!r} is no action; {hint}", value=action)
            mask |= 1 << self.schema.bit(action)
        return mask


def _time(entry: HistoryEntry, place: int) -> int:
    try:
        return check_timestamp(entry.ts)
    except BadValue as error:
        raise invalid(f"/member/history/{place}/ts", str(error), value=brief(entry.ts)) from None


def _checked(validate: Callable[[], Mapping[str, Any]], pointer: str) -> Mapping[str, Any]:
    try:
        return validate()
    except SchemaViolation as error:
        entries = [
            error_entry(f"{pointer}{inside}", f"expected {expected}", value=brief(value))
            for inside, value, expected in error.violations
        ]
        raise Problem(422, "schema-violation", str(error), errors=entries) from None

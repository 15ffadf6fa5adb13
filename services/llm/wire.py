"""Wire types of the LLM ranker: /v1/score in our words, /generative_scoring in vLLM's."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.schema import BudgetMs, Id, Wire

MAX_ITEMS = 500
MAX_HISTORY = 1000
MAX_LABELS = 16
MAX_TOKENS = 131_072

Token = Annotated[int, Field(ge=0)]


class HistoryEntry(Wire):
    """Something the member did; a stored item by its id, any other by its attributes."""

    item_id: Id | None = None
    attributes: dict[str, Any] | None = None
    actions: list[str] = Field(default_factory=list, max_length=32, description="none: it was there and nothing done")
    ts: int | str = Field(description="ISO-8601 or milliseconds since 1970, UTC")


class MemberIn(Wire):
    """A member that is told in the request; nothing of it is stored."""

    attributes: dict[str, Any] = Field(default_factory=dict)
    history: list[HistoryEntry] = Field(default_factory=list, max_length=MAX_HISTORY)


class ScoreItem(Wire):
    """A stored item by its id, any other by its attributes."""

    id: Id | None = None
    attributes: dict[str, Any] | None = None


class ScoreRequest(Wire):
    """A task about some items, for one member."""

    task: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="one of the dataset's `[llm.tasks]`; the ranking one if absent"
    )
    user_id: Id | None = None
    member: MemberIn | None = Field(default=None, description="instead of user_id: told in the request")
    items: list[ScoreItem] = Field(min_length=1, max_length=MAX_ITEMS)
    label_mass: bool = Field(default=False, description="say how likely a label word was at all; takes longer")
    budget_ms: BudgetMs | None = Field(default=None, description="time budget; the server's default if absent")


class AnswerOut(Wire):
    """One question about one item."""

    score: float = Field(description="logit of yes minus logit of no")
    probability: float = Field(description="calibrated where `calibrated` says so; else the sigmoid of the score")
    label_mass: float | None = Field(default=None, description="probability of yes or no among all words")


class ScoredItem(Wire):
    """One item of the request, in its order."""

    id: str | None
    answers: dict[str, AnswerOut]
    tokens: int


class PromptOut(Wire):
    """What stood before every item."""

    tokens: int
    entries: int = Field(description="interactions that were told")
    dropped: dict[str, int] = Field(description="interactions that were not, by reason")


class ScoreServed(Wire):
    """Which versions made the answer."""

    llm: str
    prompt: str
    dataset_schema: str


class ScoreResponse(Wire):
    """Every question of the task about every item."""

    task: str
    calibrated: bool
    items: list[ScoredItem]
    prompt: PromptOut
    served: ScoreServed
    timings: dict[str, float]
    cold_start: bool = Field(description="true: nothing is known of this member")


class GenerativeScoringRequest(BaseModel):
    """vLLM's request: members that only steer vLLM itself are taken and have no effect."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    query: str | list[Token]
    items: Annotated[list[str], Field(max_length=MAX_ITEMS)] | Annotated[list[list[Token]], Field(max_length=MAX_ITEMS)]
    label_token_ids: list[Token] = Field(min_length=1, max_length=MAX_LABELS)
    apply_softmax: bool = True
    item_first: bool = False
    add_special_tokens: bool = True
    cache_salt: str | None = None
    priority: int = 0
    request_id: str | None = None


class GenerativeScore(BaseModel):
    """One item of the request."""

    index: int
    object: Literal["score"] = "score"
    score: float


class Usage(BaseModel):
    """vLLM counts every prompt whole, shared or not, and so does this."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class GenerativeScoringResponse(BaseModel):
    """vLLM's answer."""

    id: str
    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    data: list[GenerativeScore]
    usage: Usage


class TokenizeRequest(BaseModel):
    """vLLM's request for a text's tokens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str = Field(max_length=MAX_TOKENS)
    add_special_tokens: bool = True


class TokenizeResponse(BaseModel):
    """vLLM's answer."""

    count: int
    max_model_len: int
    tokens: list[int]

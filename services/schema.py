"""Wire types under /v1. Strict: no coercion of "1" or true to a number, no unknown field passes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from index.machine import CostsFrom
from services.datasets.attribute_values import check_id
from services.datasets.ranking import ExploreSection

MAX_LIMIT = 200
MAX_EVENTS = 1000
MAX_CANDIDATES = 1000
MAX_EXCLUDED = 10_000
MAX_SESSION_EVENTS = 1000
DEFAULT_LIMIT = 10
MAX_OFFSETS_LENGTH = 64
MAX_BOOSTS = 16
MAX_BOOST_WEIGHT = 1e6

Id = Annotated[str, Field(min_length=1), AfterValidator(check_id)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
ScenarioName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
BudgetMs = Annotated[int, Field(ge=1, le=60_000)]
Include = Literal["metadata", "scores", "sources"]
DEFAULT_INCLUDE: tuple[Include, ...] = ("scores", "sources")
FilterSource = str | dict[str, Any]


class Wire(BaseModel):
    """Base of every wire type."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class SessionEvent(Wire):
    """What an anonymous visitor did; newest last unless `ts` says otherwise."""

    item_id: Id
    type: Annotated[str, Field(min_length=1, max_length=128)]
    value: float | None = None
    ts: int | str | None = Field(default=None, description="ISO-8601 or milliseconds since 1970, UTC; now if absent")


class Session(Wire):
    """An anonymous visitor: nothing of it is stored."""

    events: list[SessionEvent] = Field(max_length=MAX_SESSION_EVENTS)


class Exclude(Wire):
    """What must not be in the answer."""

    seen: bool = Field(default=True, description="items the user has acted on")
    item_ids: list[Id] = Field(default_factory=list, max_length=MAX_EXCLUDED)


class RequestBoost(Wire):
    """A weight for the items that satisfy a filter."""

    filter: FilterSource
    weight: float = Field(
        ge=-MAX_BOOST_WEIGHT,
        le=MAX_BOOST_WEIGHT,
        description="added to the inner product of the user's and the item's vector; below 0: such items come later",
    )


class RecommendationRequest(Wire):
    """One question: who is it for, how many, under which conditions."""

    user_id: Id | None = None
    session: Session | None = Field(default=None, description="instead of user_id: an anonymous visitor's events")
    limit: Limit = DEFAULT_LIMIT
    filter: FilterSource | None = Field(
        default=None,
        description="hard condition on item attributes, as text (`year >= 1990`) or as a JSON object",
    )
    boosts: list[RequestBoost] = Field(
        default_factory=list,
        max_length=MAX_BOOSTS,
        description="soft conditions: their weights take part in choosing the candidates and in the retrieval score; "
        "the value function then orders those",
    )
    exclude: Exclude | None = Field(default=None, description="default: what the user has seen")
    candidates: list[Id] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="rank exactly these items (all of them unless `limit` is given); seen items stay in "
        "unless `exclude` is given",
    )
    budget_ms: BudgetMs | None = Field(default=None, description="time budget; the server's default if absent")
    scenario: ScenarioName = Field(default="default", description="whose value function orders the slate")
    continues: Id | None = Field(
        default=None,
        description="recommendation_id of the first page: a page after it, with the items shown so far in `exclude`. "
        "Where orders are explored, it is then made with the same draw",
    )
    explain: bool = Field(default=False, description="add to every item what its score is made of")
    include: list[Include] = Field(default_factory=lambda: list(DEFAULT_INCLUDE), max_length=3)
    min_offset: str | list[str] | None = Field(
        default=None,
        max_length=MAX_OFFSETS_LENGTH,
        description="offset(s) that writes answered with: the answer sees those writes, or says that it does not",
    )


class Explanation(Wire):
    """What an item's score is made of."""

    retrieval_score: float = Field(description="inner product of the user's and the item's vector, and `boost`")
    boost: float = Field(default=0.0, description="what the request's boosts added to it")
    value_terms: dict[str, float] = Field(
        description="the summands of the value function, a weighted task under its own name; they add up to the score"
        "; where the answer was explored, to what was expected"
    )
    exploration: float = Field(default=0.0, description="what the draw added to the expected value")
    signals: dict[str, float] = Field(description="decayed counts of the item's events, as of the request")
    rerank_terms: dict[str, float] | None = Field(
        default=None,
        description="the summands `ranker`, `llm` and `constant` of the logit that the language model was blended "
        "into; null: it had no part",
    )


class RecommendedItem(Wire):
    """One place of the slate."""

    id: str
    rank: int = Field(description="1 is best")
    score: float = Field(description="the value function; the retrieval score where ranking was not available")
    probabilities: dict[str, float] | None = Field(default=None, description="calibrated, per task")
    sources: list[str] | None = None
    metadata: dict[str, Any] | None = None
    explanation: Explanation | None = None


class Served(Wire):
    """Which versions made the answer."""

    index: str | None = Field(description="retrieval model and items offset that the index held")
    retrieval_model: str | None
    links: str | None = Field(default=None, description="learned links in use; null: there are none")
    ranker: str | None
    calibrator: str | None
    value: str | None = Field(description="scenario and version of the value function; version 0 is the dataset's")
    llm: str | None = Field(default=None, description="the language model that reranked")
    prompt: str | None = Field(default=None, description="its task and the version of its texts")
    dataset_schema: str = Field(description="content hash of the feature schema")


class Degraded(Wire):
    """A stage that did not do its part, why, and what stands in its place."""

    stage: Literal["hydrate", "retrieve", "rank", "rerank", "arrange"]
    reason: str
    used: str


class Timings(Wire):
    """Milliseconds."""

    hydrate: float
    retrieve: float
    rank: float
    rerank: float = Field(default=0.0, description="0 without a language model")
    arrange: float
    total: float


class FilterPlan(Wire):
    """How the filter was answered."""

    matched: int = Field(description="items that satisfy the filter and are not excluded")
    scanned: int
    rescored: int
    strategy: str
    exact: bool = Field(description="true: equal to a full float32 scan of every matching item")
    joined: int = Field(description="requests answered by the same search; scanned and rescored are of all of them")
    costs: CostsFrom | None = Field(
        description="where the costs that decided the strategy come from: built in, measured at this start, or "
        "measured on this machine before and kept with the snapshot; null: the index was not searched"
    )


class RecommendationResponse(Wire):
    """The slate and how it came about."""

    recommendation_id: str
    items: list[RecommendedItem]
    served: Served
    degraded: list[Degraded]
    timings: Timings
    filter_plan: FilterPlan
    reranked: int = Field(default=0, description="candidates whose probability the language model had a part in")
    explored: bool = Field(default=False, description="true: the order was drawn, not only what is expected best")
    cold_start: bool = Field(description="true: nothing is known of this user")


class SimilarItem(Wire):
    """A neighbour in the retrieval model's space."""

    id: str
    rank: int
    score: float = Field(description="inner product of the two items' vectors")


class SimilarResponse(Wire):
    """The nearest items of an item."""

    id: str
    items: list[SimilarItem]
    served: Served
    filter_plan: FilterPlan
    timings: dict[str, float]


class DocumentBody(Wire):
    """An item's or a user's attributes, as the dataset describes them. In a PATCH, null deletes an attribute."""

    attributes: dict[str, Any]


class Document(Wire):
    """A stored item or user."""

    id: str
    version: int
    attributes: dict[str, Any]


class WriteResponse(Wire):
    """Where a write stands."""

    id: str
    version: int
    offset: str = Field(description="pass it as `min_offset` to read your write")
    created: bool
    visible: bool = Field(description="the next recommendation sees it")
    durable: bool = Field(description="on disk at the log's server")


class ExploreBody(ExploreSection):
    """Orders that are drawn, with propensities in the log."""


class ScenarioBody(Wire):
    """How a scenario orders candidates."""

    value: Annotated[str, Field(min_length=1)] | dict[str, float] = Field(
        description="an expression like `like + 0.2 * watch`, or the weight of each task in a sum"
    )
    explore: ExploreBody | Literal[False] | None = Field(
        default=None,
        description="how its orders explore; `false`: they do not; absent: as the dataset's description says",
    )


class ScenarioAnswer(Wire):
    """A scenario's value function, and how its orders explore."""

    name: str
    version: int = Field(description="one more with each write; 0: the dataset's own")
    value: str = Field(description="the expression")
    explore: ExploreBody | None = Field(description="null: orders are not drawn")


class ScenariosAnswer(Wire):
    """Every scenario that a request may name."""

    scenarios: list[ScenarioAnswer]


class EventIn(Wire):
    """Something a user did with an item. `event_id` makes a retry harmless."""

    event_id: Id
    user_id: Id
    item_id: Id
    type: Annotated[str, Field(min_length=1, max_length=128)]
    value: float | None = None
    ts: int | str | None = Field(default=None, description="ISO-8601 or milliseconds since 1970, UTC; now if absent")
    recommendation_id: Id | None = None
    position: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None


class EventsRequest(Wire):
    """A batch of events."""

    events: list[EventIn] = Field(min_length=1, max_length=MAX_EVENTS)


class RejectedEvent(Wire):
    """An event of the batch that was not taken."""

    index: int
    problem: str


class EventsResponse(Wire):
    """What became of a batch; the accepted part is durable if `durable` says so."""

    accepted: int
    duplicates: int
    rejected: list[RejectedEvent]
    offset: str | None = Field(description="of the last accepted event: pass it as `min_offset`; null if none was")
    durable: bool


class ProblemError(BaseModel):
    """One misfit of a request."""

    model_config = ConfigDict(extra="allow")

    pointer: str
    detail: str


class ProblemDocument(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[ProblemError] = Field(default_factory=list)


class DependencyState(Wire):
    """One dependency of this process."""

    ready: bool
    detail: str


class Readiness(Wire):
    """Whether this process can serve, and which dependency it waits for."""

    ready: bool
    dependencies: dict[str, DependencyState]

"""What is asked of the LLM ranker and what it answers: as objects, and as frames between processes."""

# n = candidates, m = candidates that were scored, Q = questions, S = signals

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.state import UserState
from models.decoder.blend import Weights
from services.processes.frames import FrameError, pack, unpack
from services.processes.user_frames import pack_user, unpack_user


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankCall:
    """Candidates of one member in the ranker's order, best first: as many as there is time for are scored."""

    user: UserState
    keys: NDArray[np.int64]
    signals: NDArray[np.float64]
    """[n, S], as of now."""
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reranking:
    """Scores of the first candidates, and what they are worth beside the ranker's logits."""

    scores: NDArray[np.float32]
    """[m], l_yes - l_no. None of them where the blend gives them no weight."""
    action: str
    """The task of the ranker whose logit they are blended with."""
    weights: Weights
    """Of the member's bucket of history length."""
    versions: Mapping[str, str]
    """`llm` and `prompt`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One interaction of a history that a request tells itself."""

    key: int | None
    attributes: Mapping[str, Any]
    actions: int
    ts_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One item of a question."""

    key: int | None
    """Of a stored item, whose numbers are known."""
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCall:
    """A task about some items for one member."""

    task: str | None
    """None: the first."""
    user: UserState
    told: Sequence[Told] | None = None
    """In place of the user's history."""
    items: Sequence[Asked]
    now_ms: int
    with_mass: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Every question of the task about every item."""

    task: str
    questions: tuple[str, ...]
    scores: NDArray[np.float32]
    """[n, Q], l_yes - l_no."""
    probabilities: NDArray[np.float32]
    """[n, Q], calibrated where the task was; else the sigmoid of the score."""
    label_mass: NDArray[np.float32] | None
    """[n, Q]."""
    calibrated: bool
    prompt_tokens: int
    item_tokens: NDArray[np.int64]
    """[n]."""
    num_entries: int
    dropped: Mapping[str, int]
    """Interactions that are not in the prompt, by reason."""
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensCall:
    """Rows of tokens behind a prefix: how likely is the first label after each?"""

    prefix: Sequence[int]
    items: Sequence[Sequence[int]]
    labels: Sequence[int]
    softmax: bool = True
    """Over the labels; else the probability among all tokens."""
    item_first: bool = False


class NotAsked(ValueError):
    """A question that the model in use cannot be asked; `pointer` is the part of the request."""

    def __init__(self, pointer: str, detail: str, value: object = None) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.value = value


def pack_rerank_call(call: RerankCall, timeout_ms: float) -> bytes:
    """The request of /internal/rerank, and without candidates that of /internal/prefill."""
    arrays, meta = pack_user(call.user)
    arrays |= {"keys": call.keys, "signals": call.signals.reshape(-1)}
    num_signals = call.signals.shape[1]
    return pack(arrays, meta | {"now_ms": call.now_ms, "timeout_ms": timeout_ms, "num_signals": num_signals})


def unpack_rerank_call(data: bytes) -> tuple[RerankCall, float]:
    """The reverse of `pack_rerank_call`. Raises FrameError."""
    arrays, meta = unpack(data)
    try:
        keys = np.asarray(arrays["keys"], np.int64)
        signals = np.asarray(arrays["signals"], np.float64).reshape(len(keys), int(meta["num_signals"]))
        call = RerankCall(user=unpack_user(arrays, meta), keys=keys, signals=signals, now_ms=int(meta["now_ms"]))
        return call, float(meta["timeout_ms"])
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"no rerank call in the frame: {error!r}") from error


def pack_reranking(reranking: Reranking) -> bytes:
    """The answer of /internal/rerank."""
    meta = {
        "action": reranking.action,
        "weights": list(reranking.weights),
        "versions": dict(reranking.versions),
    }
    return pack({"scores": reranking.scores}, meta)


def unpack_reranking(data: bytes) -> Reranking:
    """The reverse of `pack_reranking`. Raises FrameError."""
    arrays, meta = unpack(data)
    try:
        return Reranking(
            scores=np.asarray(arrays["scores"], np.float32),
            action=str(meta["action"]),
            weights=Weights(*map(float, meta["weights"])),
            versions=meta["versions"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"no reranking in the frame: {error!r}") from error


def pack_score_call(call: ScoreCall, timeout_ms: float) -> bytes:
    """The request of /internal/score."""
    arrays, meta = pack_user(call.user)
    meta |= {
        "task": call.task,
        "told": None if call.told is None else [asdict(told) for told in call.told],
        "items": [asdict(item) for item in call.items],
        "now_ms": call.now_ms,
        "with_mass": call.with_mass,
        "timeout_ms": timeout_ms,
    }
    return pack(arrays, meta)


def unpack_score_call(data: bytes) -> tuple[ScoreCall, float]:
    """The reverse of `pack_score_call`. Raises FrameError."""
    arrays, meta = unpack(data)
    try:
        call = ScoreCall(
            task=meta["task"],
            user=unpack_user(arrays, meta),
            told=None if meta["told"] is None else [Told(**told) for told in meta["told"]],
            items=[Asked(**item) for item in meta["items"]],
            now_ms=int(meta["now_ms"]),
            with_mass=bool(meta["with_mass"]),
        )
        return call, float(meta["timeout_ms"])
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"no score call in the frame: {error!r}") from error


def pack_answered(answered: Answered) -> bytes:
    """The answer of /internal/score."""
    arrays: dict[str, NDArray[Any]] = {
        "scores": answered.scores.reshape(-1),
        "probabilities": answered.probabilities.reshape(-1),
        "item_tokens": answered.item_tokens,
    }
    if answered.label_mass is not None:
        arrays["label_mass"] = answered.label_mass.reshape(-1)
    names = ("task", "questions", "calibrated", "prompt_tokens", "num_entries", "dropped", "versions")
    return pack(arrays, {name: getattr(answered, name) for name in names})


def unpack_answered(data: bytes) -> Answered:
    """The reverse of `pack_answered`. Raises FrameError."""
    arrays, meta = unpack(data)
    try:
        questions = tuple(meta["questions"])
        shape = (-1, len(questions))
        return Answered(
            **{**meta, "questions": questions},
            scores=arrays["scores"].reshape(shape),
            probabilities=arrays["probabilities"].reshape(shape),
            label_mass=arrays["label_mass"].reshape(shape) if "label_mass" in arrays else None,
            item_tokens=arrays["item_tokens"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"no answer in the frame: {error!r}") from error

"""Routes of the LLM ranker: /v1/score at the edge, vLLM's /generative_scoring, frames between processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.gateway.answers import json_response
from services.llm.calls import (
    TokensCall,
    pack_answered,
    pack_reranking,
    unpack_rerank_call,
    unpack_score_call,
)
from services.llm.client import LocalLlm, run_submitted
from services.llm.questions import ScoreQuestions
from services.llm.wire import (
    AnswerOut,
    GenerativeScore,
    GenerativeScoringRequest,
    GenerativeScoringResponse,
    PromptOut,
    ScoredItem,
    ScoreRequest,
    ScoreResponse,
    ScoreServed,
    TokenizeRequest,
    TokenizeResponse,
    Usage,
)
from services.problems import Problem, invalid
from services.processes.frames import MEDIA_TYPE, pack
from services.retrieval.app import ARROW_ANSWER, ARROW_BODY
from services.workers import Workers

T = TypeVar("T")


def score_router(questions: ScoreQuestions, default_budget_ms: int) -> APIRouter:
    """POST /v1/score."""
    router = APIRouter(prefix="/v1", tags=["llm"])

    @router.post("/score", response_model=ScoreResponse, summary="Ask a task about items, for one member")
    async def score(request: ScoreRequest, connection: Request) -> Response:
        started = time.perf_counter()
        budget_ms = float(request.budget_ms or default_budget_ms)
        questions.client.check_room(len(request.items), budget_ms)
        call, cold = await questions.make(request)
        made_ms = (time.perf_counter() - started) * 1000.0
        answered = await while_connected(connection, questions.client.score(call, budget_ms - made_ms))
        items = []
        for place, item in enumerate(request.items):
            mass = None if answered.label_mass is None else answered.label_mass[place].tolist()
            answers = {
                question: AnswerOut(
                    score=float(answered.scores[place, column]),
                    probability=float(answered.probabilities[place, column]),
                    label_mass=None if mass is None else mass[column],
                )
                for column, question in enumerate(answered.questions)
            }
            items.append(ScoredItem(id=item.id, answers=answers, tokens=int(answered.item_tokens[place])))
        total_ms = (time.perf_counter() - started) * 1000.0
        return json_response(
            ScoreResponse(
                task=answered.task,
                calibrated=answered.calibrated,
                items=items,
                prompt=PromptOut(
                    tokens=answered.prompt_tokens, entries=answered.num_entries, dropped=dict(answered.dropped)
                ),
                served=ScoreServed(
                    llm=answered.versions["llm"],
                    prompt=answered.versions["prompt"],
                    dataset_schema=questions.schema.hash(),
                ),
                timings={"hydrate": made_ms, "score": total_ms - made_ms, "total": total_ms},
                cold_start=cold,
            )
        )

    return router


def vllm_router(local: LocalLlm, workers: Workers, default_budget_ms: int) -> APIRouter:
    """POST /generative_scoring and /tokenize, as vLLM answers them: either can stand in for the other."""
    router = APIRouter(tags=["llm"])
    engine = local.engine

    @router.post(
        "/generative_scoring",
        response_model=GenerativeScoringResponse,
        summary="Probability of the first label token after each item, in vLLM's shape",
    )
    async def generative_scoring(request: GenerativeScoringRequest, connection: Request) -> Response:
        served = engine.served
        _check_model(request.model, served.version)
        call = await workers.run(_tokens_of, request, local)
        deadline_s = engine.scheduler.clock() + default_budget_ms / 1000.0
        chances = await while_connected(
            connection, run_submitted(workers, lambda until_s: engine.score_tokens(call, until_s), deadline_s)
        )
        num_tokens = len(call.prefix) * len(call.items) + sum(map(len, call.items))
        return json_response(
            GenerativeScoringResponse(
                id=f"generative-scoring-{request.request_id or connection.scope['state']['request_id']}",
                model=served.version,
                data=[GenerativeScore(index=place, score=chance) for place, chance in enumerate(chances.tolist())],
                usage=Usage(prompt_tokens=num_tokens, total_tokens=num_tokens),
            )
        )

    @router.post("/tokenize", response_model=TokenizeResponse, summary="A text's tokens, in vLLM's shape")
    async def tokenize(request: TokenizeRequest) -> Response:
        served = engine.served
        _check_model(request.model, served.version)
        tokens = await workers.run(served.tokenizer.encode, request.prompt)
        length = served.backend.max_tokens
        return json_response(TokenizeResponse(count=len(tokens), max_model_len=length, tokens=tokens))

    return router


def llm_router(local: LocalLlm) -> APIRouter:
    """POST /internal/prefill, /internal/rerank and /internal/score."""
    router = APIRouter(prefix="/internal", tags=["internal"])
    arrow = {"openapi_extra": ARROW_BODY, "responses": ARROW_ANSWER, "response_class": Response}

    @router.post("/prefill", summary="Read a member's prompt ahead of its candidates", **arrow)  # type: ignore[arg-type]
    async def prefill(request: Request) -> Response:
        call, timeout_ms = unpack_rerank_call(await request.body())
        await while_connected(request, local.prefill(call.user, call.now_ms, timeout_ms))
        return Response(pack({}, {}), media_type=MEDIA_TYPE)

    @router.post("/rerank", summary="Scores of a member's first candidates", **arrow)  # type: ignore[arg-type]
    async def rerank(request: Request) -> Response:
        call, timeout_ms = unpack_rerank_call(await request.body())
        reranking = await while_connected(request, local.rerank(call, timeout_ms))
        return Response(pack_reranking(reranking), media_type=MEDIA_TYPE)

    @router.post("/score", summary="A task's answers", **arrow)  # type: ignore[arg-type]
    async def score(request: Request) -> Response:
        call, timeout_ms = unpack_score_call(await request.body())
        answered = await while_connected(request, local.score(call, timeout_ms))
        return Response(pack_answered(answered), media_type=MEDIA_TYPE)

    return router


async def while_connected(connection: Request, work: Awaitable[T]) -> T:
    """Await the work; cancel it when the client leaves, so that the model computes for nobody who is gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(connection))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Problem(499, "client-gone", "the client left before its answer was there")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(connection: Request) -> None:
    while (await connection.receive())["type"] != "http.disconnect":
        pass


def _tokens_of(request: GenerativeScoringRequest, local: LocalLlm) -> TokensCall:
    tokenizer = local.engine.served.tokenizer

    def read(text: str | list[int]) -> list[int]:
        return tokenizer.encode(text) if isinstance(text, str) else text

    if not request.items:
        raise invalid("/items", "expected at least one item")
    # SmolLM2's tokenizer, and others of its kind, adds nothing to a text: add_special_tokens changes nothing.
    return TokensCall(
        prefix=read(request.query),
        items=[read(item) for item in request.items],
        labels=request.label_token_ids,
        softmax=request.apply_softmax,
        item_first=request.item_first,
    )


def _check_model(name: str | None, version: str) -> None:
    if name is not None and name != version:
        raise Problem(404, "unknown-model", f"no model {name!r}; this server has {version!r}")

"""A model behind a URL: any server that answers vLLM's /generative_scoring, or SGLang's /v1/score.

The same rows of tokens, the same scores; the server keeps prefixes itself. Prompts are sent as tokens, so its tokenizer
has no say in them; `probes` checks that it would agree. A server says probabilities: the score is their log odds.
"""

# N = candidates, Q = questions

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Generator, Sequence
from typing import Any

import httpx
import numpy as np
import orjson
from pydantic import SecretStr

from models.decoder.inference import Stopped
from models.decoder.scoring import Candidate, Labels, Scores
from services.llm.backend import chunks, join_scores, size_of
from services.llm.scheduler import Lease
from services.processes.remote import RemoteUnavailable

SHARE_OF_CHUNK = 8
"""A request has so many chunks' tokens: a server joins the candidates of one request, and each has its way there."""
MAX_HELD = 1024
"""Prefixes that the server is taken to hold still."""
_LARGEST_ODDS = 60.0


class VllmBackend:
    """Scores by HTTP. Belongs to the scheduler's thread, but for `unread`."""

    name = "vllm"

    def __init__(
        self,
        url: str,
        *,
        model: str | None,
        vocab_size: int,
        max_tokens: int,
        api_key: SecretStr | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """model: its name at the server; None: the only one.  vocab_size: of our tokenizer.  timeout_s: of a probe."""
        self.url = url.rstrip("/")
        self.vocab_size = vocab_size
        self.max_tokens = max_tokens
        self.path = "/generative_scoring"
        self._model = model
        self._timeout_s = timeout_s
        self._held: OrderedDict[tuple[int, ...], None] = OrderedDict()
        headers = {}
        if api_key is not None and api_key.get_secret_value():
            headers["Authorization"] = f"Bearer {api_key.get_secret_value()}"
        self._client = httpx.Client(base_url=self.url, headers=headers, transport=transport)
        # Questions under way keep a replaced backend alive; its connections end with the last of them.
        self._finalizer = weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """Close the connections."""
        self._finalizer()

    def unread(self, prefix: Sequence[int]) -> int:
        return 0 if tuple(prefix) in self._held else len(prefix)

    def prefill(self, prefix: Sequence[int], lease: Lease) -> Generator[None, None, None]:
        yield from ()
        self.first_label(list(prefix[:-1]), [[prefix[-1]]], Labels(0, 1), lease.left_s())
        lease.done(self.unread(prefix))
        self._note(prefix)

    def score(
        self,
        prefix: Sequence[int],
        candidates: Sequence[Candidate],
        labels: Labels,
        lease: Lease,
        *,
        with_mass: bool = False,
        partial: bool = False,
    ) -> Generator[None, None, Scores]:
        done: list[Scores] = []
        for chunk in chunks(candidates, SHARE_OF_CHUNK * lease.chunk_tokens()):
            if done:
                yield
            if lease.stopped() or (partial and done and not lease.fits(sum(map(size_of, chunk)))):
                if partial and done:
                    break
                raise Stopped
            try:
                scores = self._score(prefix, chunk, labels, lease.left_s(), with_mass)
            except TimeoutError:
                if partial and done:
                    break
                raise
            lease.done(scores.num_tokens + self.unread(prefix))
            self._note(prefix)
            done.append(scores)
        return join_scores(done, len(candidates[0].questions) if candidates else 0)

    def first_label(
        self, query: Sequence[int] | str, items: Sequence[Sequence[int] | str], labels: Labels, timeout_s: float | None,
        softmax: bool = True,
    ) -> list[float]:  # fmt: skip
        """The first label's probability after each row. Raises RemoteUnavailable, TimeoutError."""
        body = {
            "query": query if isinstance(query, str) else list(query),
            "items": [item if isinstance(item, str) else list(item) for item in items],
            "label_token_ids": [labels.yes, labels.no],
            "apply_softmax": softmax,
            "item_first": False,
            "add_special_tokens": False,
        }
        if self.path == "/v1/score":
            del body["add_special_tokens"]  # SGLang knows no such member
        if self._model is not None:
            body["model"] = self._model
        answer = self.post(self.path, body, timeout_s)
        try:
            if "scores" in answer:
                values = [float(row[0]) for row in answer["scores"]]
            else:
                rows = sorted(answer["data"], key=lambda row: int(row["index"]))
                values = [float(row["score"]) for row in rows]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RemoteUnavailable("llm server", f"{self.path} answered no scores: {error!r}") from error
        if len(values) != len(items) or not all(0.0 <= value <= 1.0 for value in values):
            raise RemoteUnavailable(
                "llm server", f"{self.path} answered {len(values)} scores of {len(items)} items, or no probabilities"
            )
        return values

    def post(self, path: str, body: dict[str, Any], timeout_s: float | None) -> dict[str, Any]:
        """Send JSON, return JSON. Raises RemoteUnavailable, TimeoutError."""
        seconds = self._timeout_s if timeout_s is None else max(timeout_s, 0.001)
        try:
            response = self._client.post(path, json=body, timeout=seconds)
        except httpx.TimeoutException as error:
            raise TimeoutError(f"{self.url} did not answer within {seconds * 1000:.0f} ms") from error
        except httpx.TransportError as error:
            raise RemoteUnavailable("llm server", f"{self.url}: {type(error).__name__}") from error
        if response.status_code != 200:
            raise RemoteUnavailable("llm server", f"{path} answered {response.status_code}: {response.text[:200]}")
        try:
            answer: dict[str, Any] = orjson.loads(response.content)
        except ValueError as error:
            raise RemoteUnavailable("llm server", f"{path} answered no JSON") from error
        return answer

    def _score(
        self, prefix: Sequence[int], candidates: Sequence[Candidate], labels: Labels, timeout_s: float, with_mass: bool
    ) -> Scores:
        rows = [[*one.body, *question] for one in candidates for question in one.questions]
        shape = (len(candidates), len(candidates[0].questions))
        chances = self.first_label(prefix, rows, labels, timeout_s)
        mass = None
        if with_mass:
            yes = self.first_label(prefix, rows, labels, timeout_s, softmax=False)
            no = self.first_label(prefix, rows, Labels(labels.no, labels.yes), timeout_s, softmax=False)
            mass = (np.array(yes) + np.array(no)).astype(np.float32).reshape(shape)
        scores = np.array([log_odds(chance) for chance in chances], np.float32).reshape(shape)
        return Scores(score_NQ=scores, label_mass_NQ=mass, num_tokens=sum(map(len, rows)))

    def _note(self, prefix: Sequence[int]) -> None:
        self._held[tuple(prefix)] = None
        self._held.move_to_end(tuple(prefix))
        while len(self._held) > MAX_HELD:
            self._held.popitem(last=False)


def log_odds(chance: float) -> float:
    """log(p / (1 - p)), bounded where a probability has been rounded to 0 or 1."""
    if chance <= 0.0 or chance >= 1.0:
        return -_LARGEST_ODDS if chance <= 0.0 else _LARGEST_ODDS
    return math.log(chance) - math.log1p(-chance)

"""Other engines that score the candidates of one prompt, each with its own cache of the prompt already warm.

Every engine gets the same weights at the same precision, and is asked for the difference of two logits after each
item. What an engine cannot do is said in the note beside its row.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from models.decoder.checkpoint import read_decoder
from models.decoder.scoring import Labels
from models.decoder.tokenizer import Tokenizer
from tests.models.decoder.gguf_writer import write_gguf
from tests.services.llm.vllm_server import PYTHON, serve_vllm

VOCABULARY = 1 << 16
Tokens = Sequence[int]


class UnsupportedError(Exception):
    """What this engine cannot do here, in words."""


class Peer(Protocol):
    name: str
    note: str

    def read(self, prompt: Tokens) -> None:
        """Make the cache of the prompt warm."""

    def score(self, items: Sequence[Tokens]) -> NDArray[np.float64]:
        """Return logit of yes - logit of no after each item, behind the prompt that was read."""
        ...

    def check(self, items: Sequence[Tokens]) -> NDArray[np.float64]:
        """Return the same, whatever it takes to learn it."""
        ...


class Transformers:
    """One batch, padded to the longest item, behind a copy of the prompt's cache; the head reads the last tokens."""

    name = "transformers"

    def __init__(self, folder: Path, precision: str, labels: Labels) -> None:
        transformers = _import("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=self.dtype, local_files_only=True)
        self.model.eval()
        names = inspect.signature(self.model.model.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"  # as transformers 5.24 calls it
        self.rows = torch.tensor([labels.yes, labels.no])
        self.note = f"{precision}, attention {self.model.config._attn_implementation}"

    @torch.inference_mode()
    def read(self, prompt: Tokens) -> None:
        self.cache = _import("transformers").DynamicCache(config=self.model.config)
        self.model.model(torch.tensor([prompt]), **{self.cache_name: self.cache}, use_cache=True)
        self.num_prompt = len(prompt)

    @torch.inference_mode()
    def score(self, items: Sequence[Tokens]) -> NDArray[np.float64]:
        cache = deepcopy(self.cache)  # a pass writes into it
        cache.batch_repeat_interleave(len(items))
        lengths = torch.tensor([len(item) for item in items])
        width = int(lengths.max())
        tokens = torch.tensor([[*item, *[0] * (width - len(item))] for item in items])
        mask = torch.ones(len(items), self.num_prompt + width, dtype=torch.int64)
        mask[:, self.num_prompt :] = torch.arange(width) < lengths[:, None]
        made = self.model.model(tokens, attention_mask=mask, **{self.cache_name: cache}, use_cache=True)
        hidden = made.last_hidden_state
        last = hidden[torch.arange(len(items)), lengths - 1]
        logits = last.float() @ self.model.lm_head.weight[self.rows].float().T
        return (logits[:, 0] - logits[:, 1]).double().numpy()

    check = score


class LlamaCpp:
    """llama.cpp's server in this process: the prompt is held by every slot, items go to the slots at once."""

    name = "llama.cpp"

    def __init__(self, folder: Path, precision: str, labels: Labels, num_slots: int, scratch: Path) -> None:
        self.xllamacpp = _import("xllamacpp")
        kind = {"fp32": "F32", "bf16": "BF16"}[precision]
        path = scratch / f"{kind}.gguf"
        if not path.exists():
            write_gguf(path, read_decoder(folder), Tokenizer.from_folder(folder), kind)
        self.labels, self.num_slots = labels, num_slots
        params = self.xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel, params.n_ctx = num_slots, num_slots * 1024
        params.n_batch = params.n_ubatch = 1024
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.cache_prompt, params.verbosity, params.warmup = True, -1, False
        params.cache_type_k = params.cache_type_v = getattr(self.xllamacpp.ggml_type, f"GGML_TYPE_{kind}")
        self.server = self.xllamacpp.Server(params)
        self.note = f"GGUF and cache {kind}, {num_slots} slots"

    def read(self, prompt: Tokens) -> None:
        self.prompt = list(prompt)
        self.score([[0]] * self.num_slots)

    def score(self, items: Sequence[Tokens]) -> NDArray[np.float64]:
        """NaN where the labels are not among the few likeliest tokens that are asked for: the time is the same."""
        return self._score(items, 5)

    def check(self, items: Sequence[Tokens]) -> NDArray[np.float64]:
        return self._score(items, VOCABULARY)

    def _score(self, items: Sequence[Tokens], num_probs: int) -> NDArray[np.float64]:
        answer = self.server.handle_completions(
            {
                "prompt": [[*self.prompt, *item] for item in items], "n_predict": 1, "n_probs": num_probs,
                "cache_prompt": True, "temperature": 0.0,
            }
        )  # fmt: skip
        if "choices" not in answer:
            raise UnsupportedError(f"llama.cpp: {answer}")
        rows = sorted(answer["choices"], key=lambda row: row["index"])
        return np.array([self._difference(row["logprobs"]["content"][0]["top_logprobs"]) for row in rows])

    def _difference(self, likeliest: Any) -> float:
        logs = {token["id"]: token["logprob"] for token in likeliest}
        return float(logs.get(self.labels.yes, math.nan) - logs.get(self.labels.no, math.nan))


class Vllm:
    """vLLM's own server for CPUs, its prefix cache on, over HTTP on this machine."""

    name = "vLLM"

    def __init__(self, url: str, precision: str, labels: Labels) -> None:
        self.url, self.labels = url, labels
        self.note = f"{precision}, /generative_scoring over HTTP"
        self.client = httpx.Client(timeout=600.0)

    def read(self, prompt: Tokens) -> None:
        self.prompt = list(prompt)
        self.score([[0]])

    def score(self, items: Sequence[Tokens]) -> NDArray[np.float64]:
        answer = self.client.post(
            f"{self.url}/generative_scoring",
            json={
                "model": "llm", "query": self.prompt, "items": [list(item) for item in items],
                "label_token_ids": [self.labels.yes, self.labels.no], "apply_softmax": True, "item_first": False,
                "add_special_tokens": False,
            },
        )  # fmt: skip
        answer.raise_for_status()
        chance = np.array([row["score"] for row in sorted(answer.json()["data"], key=lambda row: row["index"])])
        return np.log(chance) - np.log1p(-chance)

    check = score


@contextmanager
def vllm_peer(folder: Path, precision: str, labels: Labels, num_threads: int) -> Iterator[Vllm]:
    """Raises UnsupportedError where SHORTLIST_VLLM_PYTHON names no python that has vLLM."""
    if not PYTHON or not os.access(PYTHON, os.X_OK):
        raise UnsupportedError("SHORTLIST_VLLM_PYTHON names no python with vLLM")
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as scratch:
        log = Path(scratch) / "vllm.log"
        with serve_vllm(folder, log, 2048, dtype=dtype, num_threads=num_threads, num_sequences=64) as url:
            yield Vllm(url, precision, labels)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UnsupportedError(f"{name} is not installed; `pip install -e '.[bench]'`") from None

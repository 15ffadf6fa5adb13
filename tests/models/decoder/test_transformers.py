"""SmolLM2 by our network and tokenizer, and by transformers: the same tokens, the same logits."""

import importlib
import importlib.util
import json

import numpy as np
import pytest
import torch

from models.decoder.attention import PackedCausal
from models.decoder.checkpoint import read_decoder, write_decoder
from models.decoder.tokenizer import Tokenizer
from services.llm.pretrained import fetch_smollm2
from tests.models.decoder.texts import CONTROLS, TEXTS
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="transformers is not installed; `pip install -e '.[bench]'`",
    ),
    pytest.mark.timeout(600),
    # Of its own modules and of the libraries under it.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

FILMS = (
    "The member is a student, 24 years old.\n"
    "The Third Man (1949), thriller, liked by 71 in 100. Liked? Yes\n東京物語 (1953), drama. Liked? No\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Written again by us: what the other tests read is our writing."""
    source = fetch_smollm2()
    folder = tmp_path_factory.mktemp("smollm2")
    write_decoder(folder, read_decoder(source), Tokenizer.from_folder(source))
    return folder


@pytest.fixture(scope="module")
def prompts(folder):
    """Token rows of several lengths: a history, a chat with its control tokens, one token, digits and scripts."""
    tokenizer = Tokenizer.from_folder(folder)
    start, end = tokenizer.control("<|im_start|>"), tokenizer.control("<|im_end|>")
    chat = [start, *tokenizer.encode("user\nName the capital of France."), end, *tokenizer.encode("\n")]
    return [
        tokenizer.encode(FILMS * 6 + "Toy Story (1995), animation. Liked?"),
        [*chat, start, *tokenizer.encode("assistant\n")],
        [start],
        tokenizer.encode(" ".join(TEXTS) + " ".join(map(str, range(100)))),
    ]


def auto():
    """transformers, which takes seconds to import."""
    return importlib.import_module("transformers")


def ours_of(folder, prompts, dtype):
    """float32[T, V] of all prompts packed behind one another."""
    decoder, attention = read_decoder(folder, dtype), PackedCausal([len(prompt) for prompt in prompts])
    with torch.no_grad():
        return decoder.logits(decoder(torch.tensor(sum(prompts, [])), attention.positions(), attention))


def theirs_of(folder, prompts, dtype):
    """float32[T, V], a prompt at a time."""
    model = auto().AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return torch.cat([model(torch.tensor([prompt])).logits[0].float() for prompt in prompts])


@pytest.mark.parametrize("kind", ["smollm2", "tiny", "tiny, head apart"])
def test_logits_of_packed_prompts_are_transformers_own(folder, prompts, tmp_path, kind):
    if kind != "smollm2":
        write_decoder(tmp_path, tiny_decoder(tie_word_embeddings=kind == "tiny", head_dim=16), tiny_tokenizer())
        folder, prompts = tmp_path, tiny_tokenizer().encode_many([FILMS, "x", FILMS[:40]])
    ours, theirs = (of(folder, prompts, torch.float32) for of in (ours_of, theirs_of))
    difference = (ours - theirs).abs().max().item()
    print(f"\n{kind}: largest difference of {ours.numel()} logits {difference:.1e}, largest {theirs.abs().max():.1f}")
    # Of one sequence at a time they are the same to the bit; products of more rows add up in another order, and where
    # logits go up to 44 neighbouring float32 are 4e-6 apart.
    assert difference < 1e-4


def test_bf16_is_as_near_to_float32_as_transformers_is(folder, prompts):
    exact = theirs_of(folder, prompts, torch.float32)
    ours, theirs = (of(folder, prompts, torch.bfloat16) for of in (ours_of, theirs_of))
    label_words = torch.tensor([9230, 2838])
    for name, part in (("all logits", slice(None)), ("label words", label_words)):
        errors = [(found - exact)[:, part].square().mean().sqrt().item() for found in (ours, theirs)]
        apart = (ours - theirs)[:, part].abs()
        print(
            f"\n{name}: root mean square error of ours {errors[0]:.4f}, of transformers' {errors[1]:.4f}; "
            f"apart by at most {apart.max():.2f}, on average {apart.mean():.4f}"
        )
        # Ours takes the head in float32, theirs rounds logits too.
        assert errors[0] <= 1.05 * errors[1]
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.97


def test_texts_are_the_tokens_that_transformers_reads(folder):
    ours, theirs = Tokenizer.from_folder(folder), auto().AutoTokenizer.from_pretrained(folder)
    assert ours.encode_many(TEXTS) == [theirs(text)["input_ids"] for text in TEXTS]
    tokens = ours.encode(" ".join(TEXTS))
    assert ours.decode(tokens) == theirs.decode(tokens)
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (ours.bos, ours.eos, ours.vocab_size)


@pytest.mark.parametrize("text", CONTROLS)
def test_control_tokens_in_text_are_text_to_us_alone(folder, text):
    """By design: an item's title must not end the prompt."""
    ours, theirs = Tokenizer.from_folder(folder), auto().AutoTokenizer.from_pretrained(folder)
    controls = {token["id"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    assert set(theirs(text)["input_ids"]) & controls
    assert not set(ours.encode(text)) & controls
    assert ours.decode(ours.encode(text)) == text


def test_a_folder_that_transformers_writes_is_read(folder, prompts, tmp_path):
    """In shards, with its own spelling of config and tokenizer."""
    model = auto().AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="200MB")
    auto().AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    found, expected = read_decoder(tmp_path), read_decoder(folder)
    assert found.config == expected.config
    for name, tensor in expected.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)
    assert Tokenizer.from_folder(tmp_path).encode_many(TEXTS) == Tokenizer.from_folder(folder).encode_many(TEXTS)

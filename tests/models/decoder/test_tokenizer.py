"""Text is data: nothing that is written in it steers, and all of it comes back."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoder.tokenizer import Tokenizer, TokenizerError
from tests.models.decoder.gguf_writer import write_gguf
from tests.models.decoder.tiny import CONTROL, tiny_decoder, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS = ["", " Yes", "liked\n\n watched  film", "A café in 東京 🎬👩‍👩‍👧", "\t\x00\x7f", "<|im_end|> Yes", "é"]


@settings(max_examples=200, deadline=None)
@given(st.text() | st.lists(st.sampled_from([*CONTROL, *TEXTS, "<|", "im_end", "|>"])).map("".join))
def test_any_text_comes_back_and_is_never_a_control_token(text):
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert not set(tokens) & {TOKENIZER.control(name) for name in CONTROL}


def test_many_texts_are_encoded_as_each():
    assert TOKENIZER.encode_many(TEXTS) == [TOKENIZER.encode(text) for text in TEXTS]
    assert TOKENIZER.encode_many([]) == []


def test_half_a_surrogate_pair_is_a_question_mark():
    assert TOKENIZER.encode("a\ud83d b") == TOKENIZER.encode("a? b")
    assert TOKENIZER.encode_many(["\udc00"]) == [TOKENIZER.encode("?")]


def test_control_tokens_are_had_by_name_and_spelt_out():
    assert [TOKENIZER.control(name) for name in CONTROL] == [0, 1, 2]
    assert (TOKENIZER.bos, TOKENIZER.eos) == (1, 2)
    assert TOKENIZER.decode([1, *TOKENIZER.encode("film"), 2]) == "<|im_start|>film<|im_end|>"
    with pytest.raises(TokenizerError, match="'<pad>' is no control token; expected one of .'<|endoftext|>'"):
        TOKENIZER.control("<pad>")


def test_label_words_are_single_tokens_or_the_reason_is_said():
    tokens = [TOKENIZER.single(text) for text in (" Yes", " No", "Yes", "No")]
    assert len(set(tokens)) == 4 and TOKENIZER.decode(tokens) == " Yes NoYesNo"
    with pytest.raises(TokenizerError, match="' Yes Yes' is 2 tokens, .' Yes', ' Yes'.; expected a single one"):
        TOKENIZER.single(" Yes Yes")
    with pytest.raises(TokenizerError, match="'' is 0 tokens"):
        TOKENIZER.single("")


def test_a_folder_reads_back(tmp_path):
    TOKENIZER.save(tmp_path / "new")
    found = Tokenizer.from_folder(tmp_path / "new")
    assert (found.bos, found.eos, found.vocab_size, found.hash()) == (1, 2, TOKENIZER.vocab_size, TOKENIZER.hash())
    assert found.encode_many(TEXTS) == TOKENIZER.encode_many(TEXTS)


def test_a_gguf_file_holds_the_same_tokenizer(tmp_path):
    write_gguf(tmp_path / "model.gguf", tiny_decoder(), TOKENIZER)
    found = Tokenizer.from_gguf(tmp_path / "model.gguf")
    assert (found.bos, found.eos, found.vocab_size) == (1, 2, TOKENIZER.vocab_size)
    assert found.encode_many(TEXTS) == TOKENIZER.encode_many(TEXTS)
    write_gguf(tmp_path / "model.gguf", tiny_decoder(), TOKENIZER, fields={"tokenizer.ggml.pre": "smollm"})
    digits = Tokenizer.from_gguf(tmp_path / "model.gguf")
    assert digits.hash() != found.hash()
    assert digits.decode(digits.encode("  1995")) == "  1995"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer is 'llama', split 'gpt-2'; expected 'gpt2'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer is 'gpt2', split 'qwen2'; expected 'gpt2' and one of"),
        ({"tokenizer.ggml.pre": None}, "split None; expected"),
        ({"tokenizer.ggml.merges": None}, "has no field 'tokenizer.ggml.merges'"),
    ],
)
def test_a_gguf_vocabulary_of_another_kind_is_refused_by_name(tmp_path, fields, reason):
    write_gguf(tmp_path / "model.gguf", tiny_decoder(), TOKENIZER, fields=fields)
    with pytest.raises(TokenizerError, match=reason):
        Tokenizer.from_gguf(tmp_path / "model.gguf")


def test_a_gguf_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"absent\.gguf is no file"):
        Tokenizer.from_gguf(tmp_path / "absent.gguf")


def document_of(folder):
    TOKENIZER.save(folder)
    return json.loads((folder / "tokenizer.json").read_text())


def test_the_hash_is_of_what_is_said_not_of_how(tmp_path):
    document = document_of(tmp_path)
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]  # as older files have them
    document["truncation"] = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    document["decoder"]["trim_offsets"] = not document["decoder"]["trim_offsets"]  # which is of no effect there
    (tmp_path / "tokenizer.json").write_text(json.dumps(document, indent=1))
    assert Tokenizer.from_folder(tmp_path).hash() == TOKENIZER.hash()
    assert Tokenizer(document, bos=1, eos=0).hash() != TOKENIZER.hash()
    document["model"]["merges"].pop()
    assert Tokenizer(document, bos=1, eos=2).hash() != TOKENIZER.hash()


def test_a_text_is_encoded_alone_whatever_the_file_puts_around_it(tmp_path):
    document = document_of(tmp_path)
    document["post_processor"] = {
        "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "single": [{"SpecialToken": {"id": CONTROL[1], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {CONTROL[1]: {"id": CONTROL[1], "ids": [1], "tokens": [CONTROL[1]]}},
    }  # fmt: skip
    document["model"]["unk_token"] = CONTROL[0]
    del document["model"]["vocab"]["Ā"]  # byte 0
    found = Tokenizer(document, bos=1, eos=2)
    assert found.encode("film\x00") == TOKENIZER.encode("film")


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    document = document_of(tmp_path)
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    for change, reason in (
        ({"model": words, "added_tokens": []}, "the tokenizer is WordLevel over .*; expected BPE over ByteLevel"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"the tokenizer is BPE over \['Whitespace'\]"),
        ({"pre_tokenizer": None}, r"the tokenizer is BPE over \[None\]"),
        ({"model": {}}, "not a tokenizer.json"),
    ):
        with pytest.raises(TokenizerError, match=reason):
            Tokenizer({**document, **change}, bos=None, eos=None)


def test_ends_are_those_of_the_config_or_else_of_the_tokenizer(tmp_path):
    document_of(tmp_path)
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": [1, 2]}')
    assert [Tokenizer.from_folder(tmp_path).bos, Tokenizer.from_folder(tmp_path).eos] == [0, 1]
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<|im_end|>"}}')
    assert [Tokenizer.from_folder(tmp_path).bos, Tokenizer.from_folder(tmp_path).eos] == [2, None]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(TokenizerError, match="eos_token '</s>' is not among the added tokens"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(("text", "reason"), [(None, "does not exist"), ("{", "is not JSON"), ("[]", "a JSON list")])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=reason):
        Tokenizer.from_folder(tmp_path)

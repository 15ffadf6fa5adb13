"""Text to tokens and back, where text is data: nothing written in it becomes a control token.

What a vocabulary adds beside its byte pairs, such as <|im_end|>, steers a model; an item whose title says "<|im_end|>"
must not. So those tokens are not in the encoder at all. They are had by name, with `control`. Hugging Face's tokenizers
read them out of any text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from models.decoder.gguf_file import GgufError, GgufFile

_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_GGUF_SPLITS = {"smollm": [_DIGITS, _BYTE_LEVEL], "gpt-2": [_BYTE_LEVEL]}
"""How the words of a GGUF are split before merging, by its `tokenizer.ggml.pre`."""
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4
_EXACTLY = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or text that is not the token it should be."""


class Tokenizer:
    """A byte-level tokenizer in the form of Hugging Face's `tokenizer.json`; threads may share it.

    Bytes that the vocabulary has no token for are left out. SmolLM2 lacks six control characters, such as U+0004, and
    bytes that no character in use begins with.
    """

    def __init__(self, document: Mapping[str, Any], *, bos: int | None, eos: int | None) -> None:
        """document: the content of a tokenizer.json. Raises TokenizerError for anything but byte-level BPE."""
        self._whole = _load({**document, "truncation": None, "padding": None})
        # As the library spells it, so that one tokenizer has one hash however its file was written.
        self._document: dict[str, Any] = json.loads(self._whole.to_str())
        _check_kind(self._document)
        self._controls = {token["content"]: int(token["id"]) for token in self._document["added_tokens"]}
        self._encoder = _load(_without_controls(self._document, self._controls))
        self.bos = bos
        self.eos = eos
        self.vocab_size = max(self._whole.get_vocab(with_added_tokens=True).values()) + 1
        said = [self._document[name] for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")]
        text = json.dumps([said, bos, eos], sort_keys=True, ensure_ascii=False)
        self._hash = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json`, and bos and eos from `config.json` or else `tokenizer_config.json` beside it."""
        document = _json_of(folder / "tokenizer.json")
        if not document:
            raise TokenizerError(f"{folder / 'tokenizer.json'} does not exist or holds nothing")
        ends = {"bos": _end_of(folder, document, "bos"), "eos": _end_of(folder, document, "eos")}
        return cls(document, **ends)

    @classmethod
    def from_gguf(cls, path: Path) -> Tokenizer:
        """Read the tokenizer that a GGUF file carries. Raises TokenizerError for another kind than byte-level BPE."""
        try:
            file = GgufFile(path)
            document = _gguf_document(file)
        except GgufError as error:
            raise TokenizerError(str(error)) from None
        return cls(document, bos=file.find("tokenizer.ggml.bos_token_id"), eos=file.find("tokenizer.ggml.eos_token_id"))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as transformers and vLLM read them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(self._document, ensure_ascii=False), encoding="utf-8")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}
        config |= {
            f"{name}_token": self._whole.id_to_token(token)
            for name, token in (("bos", self.bos), ("eos", self.eos))
            if token is not None
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, never a control token; nothing is put before or after them."""
        tokens: list[int] = self._encoder.encode(_sound(text), add_special_tokens=False).ids
        return tokens

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, on several threads."""
        sound = [_sound(text) for text in texts]
        return [found.ids for found in self._encoder.encode_batch_fast(sound, add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; control tokens by their spelling. Bytes that are no UTF-8 become U+FFFD."""
        return self._whole.decode([int(token) for token in tokens], skip_special_tokens=False)

    def single(self, text: str) -> int:
        """Return the one token that a text is. Raises TokenizerError, with its tokens, where it is another number."""
        tokens = self.encode(text)
        if len(tokens) != 1:
            spelt = [self.decode([token]) for token in tokens]
            raise TokenizerError(f"{text!r} is {len(tokens)} tokens, {spelt}; expected a single one")
        return tokens[0]

    def control(self, name: str) -> int:
        """Return a control token, such as "<|im_start|>". Raises TokenizerError for a name that is none."""
        if name not in self._controls:
            raise TokenizerError(f"{name!r} is no control token; expected one of {sorted(self._controls)}")
        return self._controls[name]

    def hash(self) -> str:
        """Return 16 hex digits that change with whatever changes an encoding."""
        return self._hash


def _sound(text: str) -> str:
    """Return the text with "?" for halves of surrogate pairs, which no UTF-8 has and some JSON does."""
    return text.encode("utf-8", "replace").decode()


def _load(document: Mapping[str, Any]) -> Backend:
    try:
        return Backend.from_str(json.dumps(document))
    except Exception as error:  # the library raises no other, whatever it cannot read
        raise TokenizerError(f"not a tokenizer.json: {error}") from error


def _check_kind(document: Mapping[str, Any]) -> None:
    kind, split = document["model"]["type"], document["pre_tokenizer"] or {}
    splits = [part.get("type") for part in split.get("pretokenizers", [split])]
    if kind != "BPE" or "ByteLevel" not in splits:
        raise TokenizerError(f"the tokenizer is {kind} over {splits}; expected BPE over ByteLevel")


def _without_controls(document: Mapping[str, Any], controls: Mapping[str, int]) -> dict[str, Any]:
    model = dict(document["model"])
    # Added tokens are matched before the model runs; their names may be in its vocabulary besides.
    model["vocab"] = {token: place for token, place in model["vocab"].items() if token not in controls}
    model["unk_token"] = None  # a control token that text could become
    return {**document, "model": model, "added_tokens": [], "post_processor": None}


def _gguf_document(file: GgufFile) -> dict[str, Any]:
    kind, split = file.field("tokenizer.ggml.model"), file.find("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _GGUF_SPLITS:
        raise GgufError(
            f"{file.path}: tokenizer is {kind!r}, split {split!r}; expected 'gpt2' and one of {list(_GGUF_SPLITS)}"
        )
    tokens, kinds = file.field("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.token_type")
    added = [
        {"id": place, "content": token, "special": kind == _GGUF_CONTROL, **_EXACTLY}
        for place, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_GGUF_CONTROL, _GGUF_USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _GGUF_SPLITS[split]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: place for place, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in file.field("tokenizer.ggml.merges")],
        },
    }


def _end_of(folder: Path, document: dict[str, Any], name: str) -> int | None:
    token = _json_of(folder / "config.json").get(f"{name}_token_id")
    if isinstance(token, list):  # several that end an answer; the first is the model's own
        token = token[0]
    if token is not None:
        return int(token)
    spelt = _json_of(folder / "tokenizer_config.json").get(f"{name}_token")
    spelt = spelt.get("content") if isinstance(spelt, dict) else spelt
    if spelt is None:
        return None
    added = {token["content"]: int(token["id"]) for token in document.get("added_tokens", [])}
    if spelt not in added:
        raise TokenizerError(f"{folder}: {name}_token {spelt!r} is not among the added tokens {list(added)}")
    return added[spelt]


def _json_of(path: Path) -> dict[str, Any]:
    """Return an object, empty where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} is a JSON {type(found).__name__}; expected an object")
    return found

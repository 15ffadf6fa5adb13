"""Text to tokens and back, where text is data: nothing written in it becomes a control token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import Tokenizer as Backend

_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_GGUF_SPLITS = {"smollm": [_DIGITS, _BYTE_LEVEL], "gpt-2": [_BYTE_LEVEL], "default": [_BYTE_LEVEL]}
"""How the words of a GGUF are split before merging, by its `tokenizer.ggml.pre`."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or text that is not the token it should be."""


class Tokenizer:
    """A byte-level tokenizer in the form of Hugging Face's `tokenizer.json`.

    Control tokens ("<|im_end|>" and all others that the file adds beside its vocabulary) are known by id alone: where
    text contains their spelling it is encoded as any other text. That is a departure from transformers, which would
    let an item's title end the prompt.
    """

    def __init__(self, document: dict[str, Any], *, bos: int | None, eos: int | None) -> None:
        self._document = document
        self.bos = bos
        self.eos = eos
        added = {token["id"]: token["content"] for token in document.get("added_tokens", [])}
        self._control = added
        try:
            # Without its added tokens no text can match them; without a post-processor nothing is put around a text.
            plain = document | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            self._backend = Backend.from_str(json.dumps(plain))
        except Exception as error:  # whatever the library says of a file that it cannot read
            raise TokenizerError(f"not a tokenizer.json: {error}") from error
        self.vocab_size = max([self._backend.get_vocab_size(), *(token + 1 for token in added)])

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json`, and bos and eos from `config.json` or else `tokenizer_config.json` beside it."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(f"{path} does not exist")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TokenizerError(f"{path} is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise TokenizerError(f"{path} is not a tokenizer.json: it holds no object")
        ends = {"bos": _end_of(folder, document, "bos"), "eos": _end_of(folder, document, "eos")}
        return cls(document, **ends)

    @classmethod
    def from_gguf(cls, path: Path) -> Tokenizer:
        """Read the tokenizer that a GGUF file carries. Raises TokenizerError for another kind than byte-level BPE."""
        fields = GGUFReader(path).fields

        def read(name: str) -> Any:
            return fields[f"tokenizer.{name}"].contents() if f"tokenizer.{name}" in fields else None

        kind, split = read("ggml.model"), read("ggml.pre") or "default"
        if kind != "gpt2" or split not in _GGUF_SPLITS:
            raise TokenizerError(
                f"{path}: tokenizer is {kind!r}, split {split!r}; expected 'gpt2' and one of {list(_GGUF_SPLITS)}"
            )
        tokens, kinds = read("ggml.tokens"), read("ggml.token_type")
        added = [
            {"id": place, "content": token, "special": kind == _GGUF_CONTROL, **_EXACTLY}
            for place, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (_GGUF_CONTROL, _GGUF_USER_DEFINED)
        ]
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": _GGUF_SPLITS[split]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: place for place, token in enumerate(tokens)},
                "merges": [merge.split(" ", 1) for merge in read("ggml.merges")],
            },
        }
        return cls(document, bos=read("ggml.bos_token_id"), eos=read("ggml.eos_token_id"))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as transformers and vLLM read them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(self._document, ensure_ascii=False), encoding="utf-8")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}
        config |= {
            f"{name}_token": self._spelling(token)
            for name, token in (("bos", self.bos), ("eos", self.eos))
            if token is not None
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; nothing is put before or after them."""
        tokens: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return tokens

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, on several threads."""
        return [found.ids for found in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; control tokens by their spelling. Bytes that are no UTF-8 become U+FFFD."""
        parts: list[str] = []
        plain: list[int] = []
        for token in tokens:
            if token in self._control:
                parts += [self._backend.decode(plain), self._control[token]]
                plain = []
            else:
                plain.append(token)
        return "".join([*parts, self._backend.decode(plain)])

    def single(self, text: str) -> int:
        """Return the one token that a text is. Raises TokenizerError, with its tokens, where it is another number."""
        tokens = self.encode(text)
        if len(tokens) != 1:
            spelt = [self._spelling(token) for token in tokens]
            raise TokenizerError(f"{text!r} is {len(tokens)} tokens, {spelt}; expected a single one")
        return tokens[0]

    def hash(self) -> str:
        """Return 16 hex digits that change with whatever changes an encoding."""
        text = json.dumps([self._document, self.bos, self.eos], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _spelling(self, token: int) -> str:
        return self._control.get(token) or str(self._backend.id_to_token(token))


_EXACTLY = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _end_of(folder: Path, document: dict[str, Any], name: str) -> int | None:
    config = _json_of(folder / "config.json")
    token = config.get(f"{name}_token_id")
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
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from None
    return found if isinstance(found, dict) else {}

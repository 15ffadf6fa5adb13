"""Decoders as files: Hugging Face's folder (config.json beside safetensors), and GGUF to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.decoder.config import DecoderConfig
from models.decoder.gguf_file import GgufError, GgufFile
from models.decoder.network import Decoder
from models.decoder.tokenizer import Tokenizer

WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_OTHER = {"token_embd.weight": _EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": _HEAD}


class CheckpointError(ValueError):
    """Files that are not a decoder of this kind, or not whole; the message names the file and what is wrong."""


def read_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Read a Hugging Face folder of a Llama, in one file or in shards; weights are cast to `dtype`.

    Raises CheckpointError for a missing or damaged file, a config of another kind of model, and tensors that are
    missing, unknown or of another shape.
    """
    path = folder / "config.json"
    document = _json_of(path)
    try:
        config = DecoderConfig.from_hf(document)
    except KeyError as error:
        raise CheckpointError(f"{path} does not say {error.args[0]}") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    weights: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            weights |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None
    return _decoder(config, weights, dtype, folder)


def write_decoder(folder: Path, decoder: Decoder, tokenizer: Tokenizer | None = None) -> None:
    """Write a folder that `read_decoder`, transformers and vLLM load: the weights in the dtype that they have."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    dtype = str(weights[_EMBEDDING].dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(decoder.config.to_hf(dtype), indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)


def read_gguf(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Read a GGUF file of a Llama; what is quantised in it is dequantised, to `dtype`. Raises CheckpointError."""
    try:
        file = GgufFile(path)
        _check_kind(file)
        names = {name: _gguf_name(name, path) for name in file.tensor_names}
        weights = {names[name]: file.tensor(name) for name in names}
        config = _gguf_config(file, weights)
        permuted = {name: _in_halves(name, weight, config) for name, weight in weights.items()}
    except GgufError as error:
        raise CheckpointError(str(error)) from None
    return _decoder(config, permuted, dtype, path)


def _files(folder: Path) -> list[Path]:
    index = folder / SHARDS
    if not index.is_file():
        return [folder / WEIGHTS]
    try:
        names = sorted(set(_json_of(index)["weight_map"].values()))
    except (KeyError, AttributeError):
        raise CheckpointError(f"{index} has no weight_map, of tensors to files") from None
    return [folder / name for name in names]


def _json_of(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is a JSON {type(document).__name__}; expected an object")
    return document


def _decoder(config: DecoderConfig, weights: Mapping[str, Tensor], dtype: torch.dtype, where: Path) -> Decoder:
    with torch.device("meta"):
        decoder = Decoder(config)
    expected = decoder.state_dict()
    found = dict(weights)
    if config.tie_word_embeddings:  # some files repeat the embedding as the head
        found.pop(_HEAD, None)
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(f"{where}: tensors missing: {missing[:5]}, unknown: {unknown[:5]}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{where}: {name} is {list(tensor.shape)}; the config says {list(expected[name].shape)}"
            )
    decoder.load_state_dict({name: tensor.to(dtype) for name, tensor in found.items()}, assign=True)
    return decoder.eval()


def _check_kind(file: GgufFile) -> None:
    kind, scaling = file.field("general.architecture"), file.find("llama.rope.scaling.type")
    if kind != "llama":
        raise CheckpointError(f"{file.path}: general.architecture is {kind!r}; expected 'llama'")
    if scaling not in (None, "none"):
        raise CheckpointError(f"{file.path}: llama.rope.scaling.type is {scaling!r}; expected 'none'")


def _gguf_config(file: GgufFile, weights: Mapping[str, Tensor]) -> DecoderConfig:
    if _EMBEDDING not in weights:
        raise CheckpointError(f"{file.path} has no tensor 'token_embd.weight'")

    def read(name: str, default: Any = None) -> Any:
        return file.field(f"llama.{name}") if default is None else file.find(f"llama.{name}") or default

    heads, size = read("attention.head_count"), read("embedding_length")
    head_dim = read("attention.key_length", size // heads)
    rotated = read("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise CheckpointError(
            f"{file.path}: llama.rope.dimension_count is {rotated}; expected all {head_dim} of a head"
        )
    try:
        return DecoderConfig(
            vocab_size=len(weights[_EMBEDDING]),
            hidden_size=size,
            intermediate_size=read("feed_forward_length"),
            num_hidden_layers=read("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=read("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position_embeddings=read("context_length"),
            rope_theta=read("rope.freq_base", 10_000.0),
            rms_norm_eps=read("attention.layer_norm_rms_epsilon"),
            tie_word_embeddings=_HEAD not in weights,
            bos_token_id=file.find("tokenizer.ggml.bos_token_id"),
            eos_token_id=file.find("tokenizer.ggml.eos_token_id"),
        )
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


def _gguf_name(name: str, path: Path) -> str:
    if name in _GGUF_OTHER:
        return _GGUF_OTHER[name]
    parts = name.split(".")
    # Also where scaled rotary positions are refused: their table, rope_freqs.weight.
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _GGUF_LAYER or parts[3] != "weight":
        raise CheckpointError(f"{path}: tensor {name!r} is none of a Llama's")
    return f"model.layers.{parts[1]}.{_GGUF_LAYER[parts[2]]}.weight"


def _in_halves(name: str, weight: Tensor, config: DecoderConfig) -> Tensor:
    """Undo llama.cpp's order of query and key rows: it rotates neighbours, Llama's layout rotates halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or weight.numel() != heads * config.head_dim * config.hidden_size:  # the latter is refused by name
        return weight
    pairs = weight.reshape(heads, config.head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)

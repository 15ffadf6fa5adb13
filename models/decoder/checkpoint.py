"""Decoders as files: Hugging Face's folder (config.json beside safetensors), and GGUF to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.decoder.config import DecoderConfig
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
_GGUF_IGNORED = {"rope_freqs.weight"}  # a table of what the config says


class CheckpointError(ValueError):
    """Files that are not a decoder of this kind, or not whole; the message names the file and what is wrong."""


def read_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Read a Hugging Face folder of a Llama, in one file or in shards; weights are cast to `dtype`.

    Raises CheckpointError for a missing or damaged file, a config of another kind of model, and tensors that are
    missing, unknown or of another shape.
    """
    path = folder / "config.json"
    try:
        config = DecoderConfig.from_hf(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except KeyError as error:
        raise CheckpointError(f"{path} does not say {error.args[0]}") from None
    except ValueError as error:
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
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:  # what the reader says of a missing or cut file
        raise CheckpointError(f"{path} is no whole GGUF file: {error}") from None
    config = _gguf_config(reader, path)
    weights: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        if tensor.name in _GGUF_IGNORED:
            continue
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weights[_gguf_name(tensor.name, path)] = _gguf_rows(tensor.name, torch.from_numpy(values), config)
    return _decoder(config, weights, dtype, path)


def _files(folder: Path) -> list[Path]:
    index = folder / SHARDS
    if not index.is_file():
        return [folder / WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error!r}") from None
    return [folder / name for name in names]


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


def _gguf_config(reader: GGUFReader, path: Path) -> DecoderConfig:
    def read(name: str, default: Any = None) -> Any:
        if name in reader.fields:
            return reader.fields[name].contents()
        if default is None:
            raise CheckpointError(f"{path} does not say {name}")
        return default

    kind = read("general.architecture")
    if kind != "llama":
        raise CheckpointError(f"{path}: architecture is {kind!r}; expected 'llama'")
    heads, size = read("llama.attention.head_count"), read("llama.embedding_length")
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    ends = {
        name: int(read(f"tokenizer.ggml.{name}", -1)) if f"tokenizer.ggml.{name}" in reader.fields else None
        for name in ("bos_token_id", "eos_token_id")
    }
    return DecoderConfig(
        vocab_size=int(shapes["token_embd.weight"][1]) if "token_embd.weight" in shapes else read("llama.vocab_size"),
        hidden_size=size,
        intermediate_size=read("llama.feed_forward_length"),
        num_hidden_layers=read("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=read("llama.attention.head_count_kv", heads),
        head_dim=read("llama.attention.key_length", size // heads),
        max_position_embeddings=read("llama.context_length"),
        rope_theta=float(read("llama.rope.freq_base", 10_000.0)),
        # Written as float32: 1e-5 reads back as 9.999999747378752e-06.
        rms_norm_eps=float(f"{read('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        tie_word_embeddings="output.weight" not in shapes,
        **ends,
    )


def _gguf_name(name: str, path: Path) -> str:
    if name in _GGUF_OTHER:
        return _GGUF_OTHER[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _GGUF_LAYER or parts[3] != "weight":
        raise CheckpointError(f"{path}: tensor {name!r} is none of a Llama's")
    return f"model.layers.{parts[1]}.{_GGUF_LAYER[parts[2]]}.weight"


def _gguf_rows(name: str, weight: Tensor, config: DecoderConfig) -> Tensor:
    """Undo llama.cpp's order of query and key rows: it rotates neighbours, Llama's layout rotates halves."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = name.split(".")[2] if name.startswith("blk.") else ""
    if part not in heads:
        return weight
    pairs = weight.reshape(heads[part], config.head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()

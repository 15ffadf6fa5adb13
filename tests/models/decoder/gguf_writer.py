"""GGUF files as llama.cpp's converter writes them."""

import json
from pathlib import Path

import gguf
import numpy as np

from models.decoder.network import Decoder
from models.decoder.tokenizer import Tokenizer

_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_OTHERS = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip


def write_gguf(
    path: Path, decoder: Decoder, tokenizer: Tokenizer | None = None, kind: str = "F32", fields: dict | None = None
) -> None:
    """kind: how matrices are stored, a name of gguf.GGMLQuantizationType.  fields: what else the header says, or says
    otherwise; None for what it does not say."""
    config = decoder.config
    header = {
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        **({} if tokenizer is None else _vocabulary(tokenizer, path)),
        **(fields or {}),
    }
    writer = gguf.GGUFWriter(path, header.pop("general.architecture", "llama"))
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for name, value in header.items():
        if value is not None:
            add[type(value)](name, value)
    for name, tensor in decoder.state_dict().items():
        _add_tensor(writer, name, tensor.float().numpy(), decoder, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer, name, values, decoder, kind) -> None:
    heads = {"q_proj": decoder.config.num_attention_heads, "k_proj": decoder.config.num_key_value_heads}
    part = name.split(".")[-2]
    if part in heads:  # llama.cpp rotates neighbours
        split = values.reshape(heads[part], 2, values.shape[0] // heads[part] // 2, values.shape[1])
        values = split.swapaxes(1, 2).reshape(values.shape)
    if values.ndim == 1:
        kind = gguf.GGMLQuantizationType.F32
    if name not in _OTHERS:
        _, _, layer, rest = name.split(".", 3)
        name = f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"
    stored = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    writer.add_tensor(_OTHERS.get(name, name), stored, raw_dtype=kind)


def _vocabulary(tokenizer, path) -> dict:
    tokenizer.save(path.parent / "tokenizer")
    document = json.loads((path.parent / "tokenizer" / "tokenizer.json").read_text())
    vocab = sorted(document["model"]["vocab"], key=document["model"]["vocab"].get)
    controls = {token["content"] for token in document["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [3 if token in controls else 1 for token in vocab],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in document["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.bos,
        "tokenizer.ggml.eos_token_id": tokenizer.eos,
    }

"""The shape of a decoder, as Hugging Face's `config.json` of a Llama says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ARCHITECTURE = "LlamaForCausalLM"
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""What a config may say besides, and only so: the network has no other form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A Llama-shaped decoder: RMSNorm before each part, rotary positions, grouped queries, SwiGLU."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        sizes = {
            name: value for name, value in asdict(self).items() if name.endswith(("size", "layers", "heads", "dim"))
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; expected an even number")

    @classmethod
    def from_hf(cls, document: Mapping[str, Any]) -> DecoderConfig:
        """Read a Hugging Face config. Raises ValueError for what this decoder is not, named."""
        architectures = document.get("architectures") or [ARCHITECTURE]
        if ARCHITECTURE not in architectures or document.get("model_type", "llama") != "llama":
            raise ValueError(
                f"architectures is {architectures}, model_type {document.get('model_type')!r}; "
                f"expected {ARCHITECTURE!r}, 'llama'"
            )
        for name, value in _FIXED.items():
            if document.get(name, value) != value:
                raise ValueError(f"{name} is {document[name]!r}; expected {value!r}")
        rope = document.get("rope_parameters") or document.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f"rope_type is {kind!r}; expected 'default'")
        heads = document["num_attention_heads"]
        return cls(
            vocab_size=document["vocab_size"],
            hidden_size=document["hidden_size"],
            intermediate_size=document["intermediate_size"],
            num_hidden_layers=document["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=document.get("num_key_value_heads") or heads,
            head_dim=document.get("head_dim") or document["hidden_size"] // heads,
            max_position_embeddings=document["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta", document.get("rope_theta", 10_000.0))),
            rms_norm_eps=float(document.get("rms_norm_eps", 1e-5)),
            tie_word_embeddings=bool(document.get("tie_word_embeddings", False)),
            bos_token_id=document.get("bos_token_id"),
            eos_token_id=document.get("eos_token_id"),
        )

    def to_hf(self, dtype: str) -> dict[str, Any]:
        """The config that transformers and vLLM read; `dtype` of the weights beside it, such as "float32"."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "llama",
            **asdict(self),
            **_FIXED,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "dtype": dtype,
            "torch_dtype": dtype,
        }

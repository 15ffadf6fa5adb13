"""A decoder and a tokenizer small enough to be made on the spot."""

import json
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from models.decoder.config import DecoderConfig
from models.decoder.network import Decoder
from models.decoder.tokenizer import Tokenizer

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["Yes", "No", " Yes", " No", "The member", "liked", "watched", "film", "Question:", "Answer:"]


def tiny_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE in which Yes and No, with and without a space before, are single tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(WORDS * 3, trainer)
    return Tokenizer(json.loads(backend.to_str()), bos=1, eos=2)


def tiny_decoder(seed: int = 0, **config: Any) -> Decoder:
    """A random decoder of two layers, with weights large enough for answers to differ; in evaluation mode."""
    sizes: dict[str, Any] = {
        "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    decoder = Decoder(DecoderConfig(**{**sizes, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 / parameter.shape[1] ** 0.5, generator=generator)
    return decoder.eval()

"""What a decoder is, in Hugging Face's words and back."""

import pytest

from models.decoder.config import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rope_theta=100_000.0, rms_norm_eps=1e-6,
    tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def test_a_config_reads_back():
    document = CONFIG.to_hf("float32")
    assert DecoderConfig.from_hf(document) == CONFIG
    assert document["architectures"] == ["LlamaForCausalLM"] and document["dtype"] == "float32"


def test_an_older_config_says_the_same_by_other_names():
    document = CONFIG.to_hf("float32")
    del document["rope_parameters"], document["head_dim"], document["num_key_value_heads"]
    config = DecoderConfig.from_hf(document)
    assert (config.rope_theta, config.head_dim, config.num_key_value_heads) == (100_000.0, 32 // 4, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM.*expected 'LlamaForCausalLM'"),
        ({"model_type": "qwen2"}, "'qwen2'; expected"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ({"attention_bias": True}, "attention_bias is True; expected False"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'; expected 'default'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim is 7; expected an even number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected at least 1"),
    ],
)
def test_what_this_decoder_is_not_is_refused_by_name(change, reason):
    with pytest.raises(ValueError, match=reason):
        DecoderConfig.from_hf({**CONFIG.to_hf("float32"), **change})

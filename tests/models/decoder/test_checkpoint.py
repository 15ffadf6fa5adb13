"""Decoders in files: whole, in shards, quantised, and spoiled in every way."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.decoder.checkpoint import CheckpointError, read_decoder, read_gguf, write_decoder
from models.decoder.tokenizer import Tokenizer
from tests.models.decoder.gguf_writer import write_gguf
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # rows of whole blocks of 32


def assert_same(found, expected):
    assert found.config == expected.config
    assert not found.training
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


@pytest.fixture
def folder(tmp_path):
    write_decoder(tmp_path / "model", tiny_decoder())
    return tmp_path / "model"


def change_config(folder, **changes):
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, **changes}))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_reads_back_to_the_bit(tmp_path, tied, dtype):
    decoder = tiny_decoder(tie_word_embeddings=tied).to(dtype)
    write_decoder(tmp_path, decoder)
    assert_same(read_decoder(tmp_path, dtype), decoder)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_weights_are_cast_to_the_dtype_asked_for(folder):
    assert_same(read_decoder(folder, torch.bfloat16), tiny_decoder().bfloat16())


def test_a_tokenizer_is_written_beside_the_weights(tmp_path):
    write_decoder(tmp_path, tiny_decoder(), tiny_tokenizer())
    assert Tokenizer.from_folder(tmp_path).hash() == tiny_tokenizer().hash()


def test_shards_are_read_as_one(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / shard)
    (folder / "model.safetensors").unlink()
    where = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert_same(read_decoder(folder), tiny_decoder())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors cannot be read"):
        read_decoder(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json has no weight_map"):
        read_decoder(folder)


def test_a_tied_head_that_is_written_out_is_the_embedding(folder):
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": torch.ones(400, 32)}))
    assert_same(read_decoder(folder), tiny_decoder())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.pop("model.norm.weight"), r"missing: \['model.norm.weight'\], unknown: \[\]"),
        (lambda w: w.update({"model.rotary.inv": torch.ones(3)}), r"missing: \[\], unknown: \['model.rotary.inv'\]"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(33)}),
            r"model.norm.weight is \[33\]; the config says \[32\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, reason):
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=reason):
        read_decoder(folder)


def test_a_cut_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        read_decoder(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        read_decoder(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "config.json: architectures is .'GPT2LMHeadModel'."),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ],
)
def test_another_kind_of_model_is_refused_by_name(folder, change, reason):
    change_config(folder, **change)
    with pytest.raises(CheckpointError, match=reason):
        read_decoder(folder)


def test_a_config_that_is_not_there_or_not_whole_is_refused(folder):
    path = folder / "config.json"
    for text, reason in (('{"hidden_size": 32}', "does not say"), ("{", "is not JSON"), ("[]", "a JSON list")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            read_decoder(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="config.json does not exist"):
        read_decoder(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("groups", [4, 2])
def test_a_gguf_file_is_the_decoder_it_was_made_of(tmp_path, tied, groups):
    decoder = tiny_decoder(tie_word_embeddings=tied, num_key_value_heads=groups, rms_norm_eps=1e-6)
    write_gguf(tmp_path / "model.gguf", decoder)
    decoder.config = tiny_decoder(
        tie_word_embeddings=tied, num_key_value_heads=groups, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None
    ).config
    assert_same(read_gguf(tmp_path / "model.gguf"), decoder)


@pytest.mark.parametrize(("kind", "steps"), [("F16", 2**11), ("BF16", 2**8), ("Q8_0", 254), ("Q4_1", 15)])
def test_quantised_weights_are_within_half_a_step(tmp_path, kind, steps):
    decoder = tiny_decoder(**WIDE)
    write_gguf(tmp_path / "model.gguf", decoder, tiny_tokenizer(), kind)
    found = read_gguf(tmp_path / "model.gguf")
    assert found.config == decoder.config
    for name, weight in decoder.state_dict().items():
        blocks = weight.reshape(-1, 32)
        largest = 2 * blocks.abs().amax(1, keepdim=True)  # of a block's range
        error = (found.state_dict()[name].reshape(-1, 32) - blocks).abs()
        assert (error <= largest / steps * 0.55).all(), name
        assert kind == "F16" or weight.ndim == 1 or error.max() > 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2'; expected 'llama'"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'; expected 'none'"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count is 4; expected all 8 of a head"),
        ({"llama.context_length": None}, "has no field 'llama.context_length'"),
        ({"llama.block_count": 3}, "tensors missing: .'model.layers.2.input_layernorm.weight'"),
        ({"llama.embedding_length": 64}, r"embed_tokens.weight is \[400, 32\]; the config says \[400, 64\]"),
        ({"llama.attention.head_count": 8}, r"q_proj.weight is \[32, 32\]; the config says \[64, 32\]"),
        ({"llama.attention.head_count": 3}, "num_attention_heads 3 is no multiple of num_key_value_heads 2"),
    ],
)
def test_a_gguf_file_of_another_kind_is_refused_by_name(tmp_path, fields, reason):
    write_gguf(tmp_path / "model.gguf", tiny_decoder(), fields=fields)
    with pytest.raises(CheckpointError, match=reason):
        read_gguf(tmp_path / "model.gguf")


def test_a_cut_gguf_file_is_refused_wherever_it_is_cut(tmp_path):
    write_gguf(tmp_path / "whole.gguf", tiny_decoder(), tiny_tokenizer())
    content = (tmp_path / "whole.gguf").read_bytes()
    for length in [0, 3, 8, 30, 200, 3000, 8000, len(content) // 2, len(content) - 64]:
        path = tmp_path / f"{length}.gguf"
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=f"{length}.gguf is no whole GGUF file"):
            read_gguf(path)
    with pytest.raises(CheckpointError, match=r"absent\.gguf is no file"):
        read_gguf(tmp_path / "absent.gguf")

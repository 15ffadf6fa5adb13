"""Links as versions of an artifact: `links.jsonl`, one link a line, with the manifest of where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.retrieval.links.rows import Link, LinkFileError, read_links, write_links
from services.datasets.dataset import Dataset
from services.storage.artifacts import Artifact, ArtifactRegistry, Provenance

KIND = "links"
FILE = "links.jsonl"


def open_links(registry: ArtifactRegistry, version: str | None = None) -> tuple[Artifact, list[Link]]:
    """Return a version of the links, or the current one.

    Raises LinkFileError where there is none, ArtifactCorrupt where it is not as published.
    """
    if version is None and registry.current(KIND) is None:
        raise LinkFileError(f"there are no links in {registry.folder}; mine some with `shortlist train links`")
    try:
        artifact = registry.open(KIND, version)
    except KeyError as error:
        raise LinkFileError(str(error.args[0])) from None
    return artifact, read_links(artifact.folder / FILE)


def publish_links(registry: ArtifactRegistry, links: Sequence[Link], provenance: Provenance) -> str:
    """Make the links a version, and the current one; return the version."""

    def write(folder: Path) -> None:
        write_links(folder / FILE, links)

    version = registry.publish(KIND, write, provenance)
    registry.promote(KIND, version)
    return version


def check_links(links: Sequence[Link], dataset: Dataset) -> None:
    """Raise LinkFileError for the first link that names what the dataset does not have, or cannot be filtered by."""
    users = dataset.users.attributes
    filterable = {attribute.name: attribute for attribute in dataset.attribute_schema().attributes}
    wanted: dict[str, type] = {"keyword": str, "keyword_list": str, "int": int, "bool": bool}
    for link in links:
        for name, value in link.member_side:
            if name not in users or type(value) is not wanted.get(users[name].type):
                raise LinkFileError(
                    f"link {link.text!r}: no user attribute {name!r} of {dataset.name} can be {value!r}"
                )
        for name, value in link.item_side:
            if name not in filterable or type(value) is not wanted.get(filterable[name].type):
                raise LinkFileError(
                    f"link {link.text!r}: no item attribute {name!r} of {dataset.name} can be {value!r} "
                    "and be filtered by"
                )


def carry_edits(old: Sequence[Link], mined: Sequence[Link]) -> list[Link]:
    """Return the mined links with what people have said of the old ones: an edited link stays as it was edited."""
    edited = {link.id: link for link in old if link.origin == "edited"}
    return [*edited.values(), *(link for link in mined if link.id not in edited)]

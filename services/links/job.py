"""The job that mines links from everything imported and logged so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from models.retrieval.links.labels import LabelConfig, label_pairs
from models.retrieval.links.mining import LabelledPairs, MiningConfig, NothingToMine, mine_links
from models.retrieval.links.templates import LinkTemplate
from services.datasets.dataset import Dataset, parse_half_life
from services.datasets.links_section import LinksSection
from services.links.artifact import KIND, carry_edits, open_links, publish_links
from services.storage.artifacts import ArtifactRegistry, Provenance
from services.training.data import NothingToTrainOn, TrainingData
from services.training.jobs import Outcome
from services.training.promotion import Decision


def train_links(data: TrainingData, registry: ArtifactRegistry, dataset: Dataset) -> Outcome:
    """Mine, publish and promote links. Links that people have edited stay as they were edited.

    Raises NothingToTrainOn where the dataset names no templates, or nothing was confirmed.
    """
    section = dataset.links
    if section is None:
        raise NothingToTrainOn(f"dataset {dataset.name} has no [links] section that says what may be linked")
    config, labels = mining_config(section), label_config(section)
    profiles, pairs = labelled_rows(data, labels)
    try:
        mined = mine_links(config, profiles, data.item_attributes, pairs)
    except NothingToMine as error:
        raise NothingToTrainOn(f"links of {labels.confirmed!r} against {labels.refused!r}: {error}") from None
    parent = registry.current(KIND)
    links = list(mined.links) if parent is None else carry_edits(open_links(registry)[1], mined.links)
    edited = sum(link.origin == "edited" for link in links)
    version = publish_links(
        registry,
        links,
        Provenance(
            config={"mining": asdict(config), "labels": asdict(labels)},
            schema_hash=data.schema.hash(),
            data_window_ms=data.window_ms,
            metrics={**mined.figures, "edited": float(edited)},
            parent=parent,
        ),
    )
    reason = f"{len(links):,} links of {mined.figures['hires']:,.0f} confirmed pairs, {edited} of them edited by hand"
    return Outcome(kind=KIND, version=version, decision=Decision(promoted=True, reason=reason))


def labelled_rows(data: TrainingData, labels: LabelConfig) -> tuple[list[Mapping[str, object]], LabelledPairs]:
    """Return the profile of every member that is known or has acted, and the labelled pairs of them and the items."""
    member_keys = np.union1d(np.fromiter(data.users, np.int64, len(data.users)), data.events.user_keys)
    profiles = [data.users.get(key, {}) for key in member_keys.tolist()]
    return profiles, label_pairs(labels, data.schema, data.events, member_keys, data.item_keys)


def mining_config(section: LinksSection) -> MiningConfig:
    """Return how the section asks to mine."""
    return MiningConfig(
        templates=tuple(LinkTemplate(each.member, each.item, each.same) for each in section.templates),
        max_size=section.max_size,
        min_support=section.min_support,
    )


def label_config(section: LinksSection) -> LabelConfig:
    """Return what the section asks to count for and against links."""
    pending_ms = parse_half_life(section.pending)
    assert pending_ms is not None
    return LabelConfig(
        confirmed=section.confirmed, refused=section.refused, pending_ms=pending_ms, sampled_per_hire=section.sampled
    )

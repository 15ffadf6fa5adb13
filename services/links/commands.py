"""`shortlist links show|edit|audit`: settings in, text out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from models.retrieval.links.matching import ItemPostings, LinkSet
from models.retrieval.links.rows import Link, LinkFileError, compare_links, read_links, write_links
from services.datasets.dataset import Dataset
from services.folder import job_storage
from services.links.artifact import check_links, open_links, publish_links
from services.links.audit import audit_links
from services.links.job import label_config, labelled_rows
from services.settings import Settings
from services.storage.artifacts import Provenance
from services.training.data import load_training_data


def show_links(
    settings: Settings, *, user: str | None, item: str | None, version: str | None, limit: int, out: Path | None
) -> Table | str:
    """Return a table of links, the heaviest first; with `out`, write them all to that file and say so.

    user, item: only the links that hold of that user's profile, of that item.
    """
    with job_storage(settings, "links") as storage:
        artifact, links = open_links(storage.artifacts, version)
        if user is not None:
            document = storage.users.get(user)
            if document is None:
                raise LinkFileError(f"there is no user {user!r}")
            held = {link.id for link in LinkSet(links).links_of(document.attributes)}
            links = [link for link in links if link.id in held]
        if item is not None:
            document = storage.items.get(item)
            if document is None:
                raise LinkFileError(f"there is no item {item!r}")
            postings = ItemPostings([document.attributes])
            links = [link for link in links if len(postings.rows(link.item_side))]
    links.sort(key=lambda link: (-link.weight, link.text))
    if out is not None:
        write_links(out, links)
        return f"{len(links):,} links of {artifact.version} are in {out}"
    table = Table("id", "link", "weight", "hires", "refusals", "reach", "")
    for link in links[:limit]:
        state = " ".join(word for word, on in (("edited", link.origin == "edited"), ("off", not link.enabled)) if on)
        counts = (str(link.hires), str(link.refusals), str(link.reach))
        table.add_row(link.id, Text(link.text), f"{link.weight:.2f}", *counts, state)
    table.caption = f"{min(limit, len(links))} of {len(links):,} links of version {artifact.version}"
    return table


def edit_links(
    settings: Settings, *, file: Path | None, off: Sequence[str], on: Sequence[str], weights: Sequence[str]
) -> str:
    """Publish the links of a file, or the current ones with some changed, as the current version; say what changed.

    off, on: ids to switch.  weights: like "3f2a...=1.5".  What a person changes stays when links are mined anew.
    """
    dataset = Dataset.load(settings.dataset)
    with job_storage(settings, "links") as storage:
        artifact, current = open_links(storage.artifacts)
        links = current if file is None else read_links(file)
        changes = [(name, {"enabled": False}) for name in off] + [(name, {"enabled": True}) for name in on]
        edited = {link.id: link for link in links}
        for name, change in changes:
            edited[name] = _find(edited, name).edited(**change)
        for text in weights:
            name, _, weight = text.partition("=")
            edited[name] = _find(edited, name).edited(weight=_number(text, weight))
        added, removed, changed = compare_links(current, list(edited.values()))
        for link in [*added, *changed]:
            edited[link.id] = replace(link, origin="edited")
        # One that is gone from the file would be mined again: it stays, switched off.
        for link in removed:
            edited[link.id] = link.edited(enabled=False)
        if not (added or removed or changed):
            return f"nothing differs from version {artifact.version}"
        check_links(list(edited.values()), dataset)
        old = artifact.provenance
        version = publish_links(
            storage.artifacts,
            list(edited.values()),
            Provenance(
                config={
                    **old.config,
                    "edited": {"added": len(added), "removed": len(removed), "changed": len(changed)},
                },
                schema_hash=old.schema_hash,
                data_window_ms=old.data_window_ms,
                metrics=old.metrics,
                parent=artifact.version,
            ),
        )
    lines = [f"version {version} is current: {len(added)} added, {len(removed)} switched off, {len(changed)} changed"]
    lines += [
        f"  {what} {link.text}" for what, of in (("+", added), ("-", removed), ("~", changed)) for link in of[:20]
    ]
    return "\n".join(lines)


def audit(settings: Settings, *, limit: int, json_file: Path | None) -> Table:
    """Return a table of the links that a person should look at; with a file, every link's counts as JSON Lines."""
    dataset = Dataset.load(settings.dataset)
    if dataset.links is None:
        raise LinkFileError(f"dataset {dataset.name} has no [links] section that says what confirms a link")
    with job_storage(settings, "links") as storage:
        artifact, links = open_links(storage.artifacts)
        data = load_training_data(storage, dataset.feature_schema())
    profiles, pairs = labelled_rows(data, label_config(dataset.links))
    found = audit_links(links, profiles, data.item_attributes, pairs)
    table = Table("id", "link", "weight", "members", "reach", "hires", "refusals", "look, for it")
    rows = []
    for place, link in enumerate(found.links):
        counts = [int(column[place]) for column in (found.members, found.reach, found.hires, found.refusals)]
        names = ("members", "reach", "hires", "refusals")
        findings = found.findings(place)
        rows.append({"id": link.id, "link": link.text, **dict(zip(names, counts, strict=True)), "findings": findings})
        if findings and table.row_count < limit:
            named = (link.id, Text(link.text), f"{link.weight:.2f}")
            table.add_row(*named, *(str(count) for count in counts), "; ".join(findings))
    if json_file is not None:
        json_file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    flagged = sum(bool(row["findings"]) for row in rows)
    table.caption = (
        f"{flagged:,} of {len(rows):,} links of version {artifact.version} to look at; "
        f"{100 * found.base_rate:.1f} % of {len(pairs):,} pairs are confirmed"
    )
    return table


def _find(links: dict[str, Link], name: str) -> Link:
    if name not in links:
        raise LinkFileError(f"there is no link {name!r}; `shortlist links show` lists them with their ids")
    return links[name]


def _number(text: str, weight: str) -> float:
    try:
        return float(weight)
    except ValueError:
        raise LinkFileError(f"weight {text!r}; expected ID=NUMBER") from None

"""Every name under which something is stored, in one place.

The dataset's key stands in braces, so that in a cluster all of a dataset's keys share one slot and the scripts and
transactions that touch several of them keep working.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.keys import pack_key


@dataclass(frozen=True, slots=True)
class Names:
    dataset_key: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", self.dataset_key):
            raise ValueError(
                f"dataset key {self.dataset_key!r} is not usable; expected 1 to 64 letters, digits, '_', '.', '-'"
            )

    @property
    def prefix(self) -> str:
        return "{" + self.dataset_key + "}:"

    def documents(self, store: str) -> str:
        """Hash: packed key -> document."""
        return f"{self.prefix}{store}"

    def stream(self, name: str) -> str:
        return f"{self.prefix}stream:{name}"

    def offsets(self, stream: str) -> str:
        """Hash: consumer -> offset up to which it no longer needs the stream."""
        return f"{self.prefix}offsets:{stream}"

    def trimmed(self, stream: str) -> str:
        """String: offset of the last entry trimmed away."""
        return f"{self.prefix}trimmed:{stream}"

    def event_ids(self, bucket: int) -> str:
        """Set: digests of the event ids that arrived in one period."""
        return f"{self.prefix}event-ids:{bucket}"

    def history(self, user_key: int) -> bytes:
        """Sorted set: packed history entries by time."""
        return f"{self.prefix}history:".encode() + pack_key(user_key)

    def seen(self, user_key: int) -> bytes:
        """Set: packed keys of items acted on."""
        return f"{self.prefix}seen:".encode() + pack_key(user_key)

    def popularity(self, signal: str) -> str:
        """Sorted set: packed item key -> forward-decayed count."""
        return f"{self.prefix}popularity:{signal}"

    @property
    def state(self) -> str:
        """Hash: what belongs to histories and popularity as a whole (offset, landmark, sequence, import markers)."""
        return f"{self.prefix}state"

    @property
    def scenarios(self) -> str:
        """Hash: scenario -> version, time and value function."""
        return f"{self.prefix}scenarios"

    @property
    def ranker_offsets(self) -> str:
        """Hash: the ranker's popularity offsets and the place in the events stream that they reach."""
        return f"{self.prefix}ranker-offsets"

    @property
    def archive(self) -> str:
        """Hash: the archive's intent, so that a part begun before a crash is finished as the same part."""
        return f"{self.prefix}archive"

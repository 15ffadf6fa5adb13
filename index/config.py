"""What an index is built with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from index.attributes import AttributeSchema
from kernels.codes import MAX_DIM
from kernels.filtered_topk import Backend

CodeKind = Literal["int8", "int4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """Settings of a LiveIndex."""

    dim: int
    """Dimensions of every vector and query."""
    schema: AttributeSchema = field(default_factory=AttributeSchema)
    """The attributes that filters may ask about."""
    signals: tuple[str, ...] = ()
    """Names of the float64 columns kept per item beside its vector."""
    capacity: int = 1024
    """Rows to make room for at first; the index grows by itself."""
    codes: CodeKind = "int8"
    """int8: a scan reads upper nibbles, and lower ones where they can matter. int4: the upper nibbles are all that is
    kept, half the bytes; a few more vectors are then read per search."""
    store_vectors: bool = True
    """False: the codes stand in the vectors' place, a quarter or an eighth of the bytes. Scores are then those of the
    codes and `Hits.exact` is False; the best by these scores are found exactly."""
    keep_snapshots: int = 3
    """How many snapshots stay in the folder after a new one is written."""
    backend: Backend = "auto"
    """Which implementation of the kernels runs."""
    num_threads: int | None = None
    """Threads of one large search; None = the cores that the process may use."""

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= MAX_DIM:
            raise ValueError(f"dim = {self.dim}, expected 1 to {MAX_DIM}")
        if self.capacity < 1:
            raise ValueError(f"capacity = {self.capacity}, expected at least 1")
        if self.keep_snapshots < 1:
            raise ValueError(f"keep_snapshots = {self.keep_snapshots}, expected at least 1")
        if self.codes not in get_args(CodeKind):
            raise ValueError(f"codes = {self.codes!r}, expected one of {list(get_args(CodeKind))}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads = {self.num_threads}, expected at least 1 or None")
        if len(set(self.signals)) < len(self.signals):
            raise ValueError(f"signals = {list(self.signals)}: a name given twice")

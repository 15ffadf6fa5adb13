"""What an index is built with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from index.attributes import AttributeSchema
from kernels.codes import MAX_DIM, MAX_ROTATED_DIM
from kernels.filtered_topk import Backend
from kernels.sign_codes import WORD_BITS, SignKind

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
    rotate: bool = False
    """Rotate vectors by a random orthogonal matrix before they become int8 or int4 codes: fewer rows are rescored where
    a few dimensions are much larger than the others. Answers are as exact."""
    signs: SignKind | None = None
    """Keep 1-bit codes beside the others, for searches with a `depth`: see `kernels.sign_codes` for the kinds."""
    sign_bits: int = 0
    """Bits of a 1-bit code, a multiple of 64; 0 = the dimensions, rounded up to one."""
    seed: int = 0
    """Of the rotation and of what 1-bit codes are signs of. Snapshots hold both, so it matters once."""
    recall_every: int = 64
    """Of how many searches with a `depth` one is also answered exactly, beside the callers."""
    recall_window: int = 256
    """How many of those measurements `Hits.recall` is the mean of."""
    keep_snapshots: int = 3
    """How many snapshots stay in the folder after a new one is written."""
    backend: Backend = "auto"
    """Which implementation of the kernels runs."""
    num_threads: int | None = None
    """Threads of one large search; None = the cores that the process may use."""

    @property
    def num_sign_bits(self) -> int:
        """Bits of a 1-bit code, where there are any."""
        return self.sign_bits or (self.dim + WORD_BITS - 1) // WORD_BITS * WORD_BITS

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= MAX_DIM:
            raise ValueError(f"dim = {self.dim}, expected 1 to {MAX_DIM}")
        if self.capacity < 1:
            raise ValueError(f"capacity = {self.capacity}, expected at least 1")
        if self.keep_snapshots < 1:
            raise ValueError(f"keep_snapshots = {self.keep_snapshots}, expected at least 1")
        if self.codes not in get_args(CodeKind):
            raise ValueError(f"codes = {self.codes!r}, expected one of {list(get_args(CodeKind))}")
        if self.rotate and self.dim > MAX_ROTATED_DIM:
            raise ValueError(f"rotate with dim = {self.dim}, expected at most {MAX_ROTATED_DIM}")
        if self.signs not in (None, *get_args(SignKind)):
            raise ValueError(f"signs = {self.signs!r}, expected None or one of {list(get_args(SignKind))}")
        if self.sign_bits % WORD_BITS or not 0 <= self.sign_bits <= MAX_DIM:
            raise ValueError(f"sign_bits = {self.sign_bits}, expected a multiple of {WORD_BITS} up to {MAX_DIM}")
        if self.recall_every < 1 or self.recall_window < 1:
            raise ValueError(f"recall_every = {self.recall_every}, recall_window = {self.recall_window}: expected >= 1")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads = {self.num_threads}, expected at least 1 or None")
        if len(set(self.signals)) < len(self.signals):
            raise ValueError(f"signals = {list(self.signals)}: a name given twice")

"""Arrays with room to grow in place: address space is reserved, memory is taken as rows are written.

A file can be laid over the start of a reservation: its pages are read when they are needed, and a page that is
written becomes this process's own. The file itself never changes.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import IO

import numpy as np
from numpy.typing import NDArray

FILE_HEADER_BYTES = 128  # arrays begin here, where the data of a .npy file begins, so that such a file fits under them
HUGE_FROM_BYTES = 4 << 20
POPULATE_BYTES = 2 << 20  # at once: who maps memory meanwhile waits for so much
_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_can_map_files = sys.platform == "linux"
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE: gives pages to a range and leaves what it holds as it is (Linux 5.14)


class Reserved:
    """Zeros, of which only what was written takes memory. `array` may be sliced; slices keep the memory alive."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        count = int(np.prod(shape))
        self.num_bytes = FILE_HEADER_BYTES + count * dtype.itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        self._map = mmap.mmap(-1, self.num_bytes, flags=flags)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.array: NDArray[np.generic] = np.frombuffer(self._map, dtype, count, FILE_HEADER_BYTES).reshape(shape)

    def expect(self, num_bytes: int) -> None:
        """Use large pages where so much of the array will be read or written: a scan then misses the TLB less."""
        if num_bytes >= HUGE_FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._map.madvise(mmap.MADV_HUGEPAGE)
            except OSError:  # a kernel without large pages
                return

    def populate(self, part: NDArray[np.generic]) -> None:
        """Give memory to a slice of the array ahead of its writer, or beside it. A hint: it may do nothing."""
        if sys.platform != "linux" or not part.size:
            return
        end = part.ctypes.data + part.nbytes
        for start in range(part.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE, end, POPULATE_BYTES):
            size = ctypes.c_size_t(min(POPULATE_BYTES, end - start))
            _library().madvise(ctypes.c_void_p(start), size, _POPULATE_WRITE)

    def lay_file(self, file: IO[bytes], num_bytes: int) -> memoryview | None:
        """The whole file under the start of the reservation, header included; None where this system cannot."""
        if not _can_map_files or not 0 < num_bytes <= self.num_bytes:
            return None
        library = _library()
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        fixed, access = 0x10, mmap.PROT_READ | mmap.PROT_WRITE
        address = self._bytes.ctypes.data
        laid = library.mmap(address, num_bytes, access, mmap.MAP_PRIVATE | fixed, file.fileno(), 0)
        return memoryview(self._map)[:num_bytes] if laid == address else None


def give_back_freed() -> None:
    """Hand memory that was freed, but kept for later by the C library, back to the system (glibc only)."""
    if sys.platform == "linux" and hasattr(_library(), "malloc_trim"):
        _library().malloc_trim(0)


@cache
def _library() -> ctypes.CDLL:
    """The C library; its calls run without the interpreter's lock."""
    return ctypes.CDLL(None, use_errno=True)

import numba
import numpy as np

from kernels.cpu.compile import compiled, lowest_bit


def test_a_missing_cache_folder_is_survived(monkeypatch):
    plain = numba.njit

    def njit(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return plain(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(lambda x: x + 1)(2) == 3


def test_lowest_bit_of_every_position():
    find = compiled(lambda word: lowest_bit(word))
    for place in range(64):
        assert find(np.uint64(1 << place)) == place
        assert find(np.uint64((2**64 - 1) << place & (2**64 - 1))) == place

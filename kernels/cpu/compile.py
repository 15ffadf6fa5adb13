"""numba.njit with this package's settings, in a form that type checkers can read.

`nogil` lets searches run beside one another and beside the writer. numba's own threads are not used: its
`workqueue` layer aborts the process when two threads enter parallel kernels, and its other layers need system
libraries. Large scans are cut into parts that run on plain threads instead.

numba's disk cache watches only the file of the function it compiled: after a change to a function that another
file's kernel calls, remove the `*.nbi` files beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # numba's own compiler
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile at the first call, release the GIL while running, keep the machine code on disk."""
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder to keep machine code in: compile in every process
        return cast(F, numba.njit(nogil=True)(function))


def _generate_lowest_bit(typing_context: object, word: object) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: object, arguments: tuple[object, ...]) -> object:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.int64(types.uint64), generate


# The position of the lowest set bit of a word that is not 0; one instruction, for use in compiled code.
lowest_bit: Callable[[np.uint64], int] = cast(Any, intrinsic(_generate_lowest_bit))


def _generate_count_bits(typing_context: object, word: object) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: object, arguments: tuple[object, ...]) -> object:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


# The number of set bits of a word; for use in compiled code.
count_word: Callable[[np.uint64], int] = cast(Any, intrinsic(_generate_count_bits))


def _generate_prefetch(typing_context: object, address: object) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: object, arguments: tuple[object, ...]) -> object:
        pointer = ir.PointerType(ir.IntType(8))
        integer = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
        function = cast(Any, cgutils).get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read_all_levels_data = [ir.Constant(integer, value) for value in (0, 3, 1)]
        builder.call(function, [builder.inttoptr(arguments[0], pointer), *read_all_levels_data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


# Ask for the cache line at an address before it is needed; harmless for any address. For use in compiled code.
prefetch: Callable[[int], None] = cast(Any, intrinsic(_generate_prefetch))

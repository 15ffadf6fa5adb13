"""Inner products of a plane's nibbles with a query's steps, compiled.

# P = bytes of a row's plane, L = P padded to whole lines, T = rows of a tile

    dot = sum_d nibble_d * step_d = 16 * sum_d nibble_d * high_d + sum_d nibble_d * low_d        step = 16 * high + low

Where the processor has AVX-512 VNNI, a line of 128 nibbles takes two unpacking instructions and four of `vpdpbusd`,
which multiplies unsigned by signed bytes and adds four products at a time without saturating. Elsewhere the products
are written out, and the compiler takes what the processor has. The integers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir  # numba's own compiler
from numba import types
from numba.core import cgutils, codegen
from numba.extending import intrinsic
from numpy.typing import NDArray

from kernels.cpu.compile import compiled

LINE_BYTES = 64


def _has_vnni() -> bool:
    """Whether the machine code that numba writes here may use AVX-512 VNNI; its settings can forbid it."""
    settings = cast(Any, numba.config)
    if settings.CPU_NAME == "generic":
        return False
    allowed = settings.CPU_FEATURES
    if allowed is None:
        allowed = cast(Any, codegen).get_host_cpu_features()
    features = set(allowed.split(","))
    return {"+avx512f", "+avx512bw", "+avx512vnni"} <= features


HAS_VNNI = _has_vnni()


def _generate_dot_row(
    typing_context: object, code_at: object, high_at: object, low_at: object, length: object, width: object
) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: object, arguments: tuple[Any, ...]) -> object:
        code_at, high_at, low_at, length, width = arguments
        byte, word = ir.IntType(8), ir.IntType(32)
        line, sums = ir.VectorType(byte, LINE_BYTES), ir.VectorType(word, LINE_BYTES // 4)
        tools = cast(Any, cgutils)

        def load(address: Any, offset: Any) -> Any:
            loaded = builder.load(builder.inttoptr(builder.add(address, offset), line.as_pointer()))
            loaded.align = 1
            return loaded

        def splat(value: int) -> Any:
            return ir.Constant(line, [value] * LINE_BYTES)

        def call(name: str, result: Any, *given: Any) -> Any:
            kind = ir.FunctionType(result, [each.type for each in given])
            return builder.call(tools.get_or_insert_function(builder.module, kind, name), list(given))

        zero = ir.Constant(sums, [0] * (LINE_BYTES // 4))
        high_sum, low_sum = (tools.alloca_once_value(builder, zero) for _ in range(2))

        def add(nibbles: Any, offset: Any) -> None:
            for place, address in ((high_sum, high_at), (low_sum, low_at)):
                steps, so_far = load(address, offset), builder.load(place)
                if HAS_VNNI:
                    parts = so_far, builder.bitcast(nibbles, sums), builder.bitcast(steps, sums)
                    builder.store(call("llvm.x86.avx512.vpdpbusd.512", sums, *parts), place)
                    continue
                wide = ir.VectorType(word, LINE_BYTES)
                products = builder.mul(builder.zext(nibbles, wide), builder.sext(steps, wide))
                for first in range(0, LINE_BYTES, LINE_BYTES // 4):
                    some = ir.Constant(sums, list(range(first, first + LINE_BYTES // 4)))
                    so_far = builder.add(so_far, builder.shuffle_vector(products, products, some))
                builder.store(so_far, place)

        def add_line(codes: Any, offset: Any) -> None:
            add(builder.and_(codes, splat(15)), offset)
            add(builder.lshr(codes, splat(4)), builder.add(offset, length))

        number = length.type
        whole = builder.and_(width, ir.Constant(number, -LINE_BYTES))
        with tools.for_range_slice(builder, ir.Constant(number, 0), whole, ir.Constant(number, LINE_BYTES), number) as (
            offset,
            _step,
        ):
            add_line(load(code_at, offset), offset)
        # The last bytes of a row: the rest of their line is the next row, or no memory of ours.
        rest = builder.sub(width, whole)
        half = ir.VectorType(byte, LINE_BYTES // 2)
        with builder.if_then(builder.icmp_unsigned("==", rest, ir.Constant(number, LINE_BYTES // 2))):
            loaded = builder.load(builder.inttoptr(builder.add(code_at, whole), half.as_pointer()))
            loaded.align = 1
            places = ir.Constant(
                ir.VectorType(word, LINE_BYTES), [min(at, LINE_BYTES // 2) for at in range(LINE_BYTES)]
            )
            add_line(builder.shuffle_vector(loaded, ir.Constant(half, [0] * (LINE_BYTES // 2)), places), whole)
        few = builder.icmp_unsigned(
            "!=", builder.urem(rest, ir.Constant(number, LINE_BYTES // 2)), ir.Constant(number, 0)
        )
        with builder.if_then(few):
            flags = ir.VectorType(ir.IntType(1), LINE_BYTES)
            ones = builder.lshr(ir.Constant(number, -1), builder.sub(ir.Constant(number, LINE_BYTES), rest))
            pointer = builder.inttoptr(builder.add(code_at, whole), ir.PointerType(line))
            codes = call(
                "llvm.masked.load.v64i8.p0", line, pointer, ir.Constant(word, 1), builder.bitcast(ones, flags), splat(0)
            )
            add_line(codes, whole)
        sixteen = ir.Constant(sums, [4] * (LINE_BYTES // 4))
        total = builder.add(builder.shl(builder.load(high_sum), sixteen), builder.load(low_sum))
        return call("llvm.vector.reduce.add.v16i32", word, total)

    return types.int32(*[types.int64] * 5), generate


# dot_row(address of a row's plane, address of high_2L, address of low_2L, L, P): the inner product of a row's nibbles
# with the steps. It takes addresses because arrays would have their references counted at every call, by all threads
# at once. For use in compiled code.
dot_row: Callable[[int, int, int, int, int], np.int32] = cast(Any, intrinsic(_generate_dot_row))


def join_planes(
    upper_NP: NDArray[np.uint8], lower_NP: NDArray[np.uint8], row_T: NDArray[np.int64], code_TD: NDArray[np.int8]
) -> None:
    """Write the int8 codes of some rows; their upper nibbles alone, as they are, where the lower plane is not kept."""
    width, dim = upper_NP.shape[1], code_TD.shape[1]
    if not len(lower_NP):
        _spread_plane(upper_NP, row_T, code_TD)
    elif dim == 2 * width and width % 8 == 0:
        _join_words(upper_NP.view(np.uint64), lower_NP.view(np.uint64), row_T, code_TD.view(np.uint64))
    else:
        _join_bytes(upper_NP, lower_NP, row_T, code_TD)


@compiled
def _join_words(
    upper_NQ: NDArray[np.uint64], lower_NQ: NDArray[np.uint64], row_T: NDArray[np.int64], code_TQ: NDArray[np.uint64]
) -> None:
    """Eight bytes at a time; what is added to a code, 128, is its highest bit."""
    low, high, offset, four = (
        np.uint64(0x0F0F_0F0F_0F0F_0F0F),
        np.uint64(0xF0F0_F0F0_F0F0_F0F0),
        np.uint64(0x8080_8080_8080_8080),
        np.uint64(4),
    )
    size = upper_NQ.shape[1]
    for place in range(row_T.shape[0]):
        row = row_T[place]
        for at in range(size):
            upper, lower = upper_NQ[row, at], lower_NQ[row, at]
            code_TQ[place, at] = (((upper & low) << four) | (lower & low)) ^ offset
            code_TQ[place, size + at] = ((upper & high) | ((lower >> four) & low)) ^ offset


@compiled
def _join_bytes(
    upper_NP: NDArray[np.uint8], lower_NP: NDArray[np.uint8], row_T: NDArray[np.int64], code_TD: NDArray[np.int8]
) -> None:
    width, dim = upper_NP.shape[1], code_TD.shape[1]
    for place in range(row_T.shape[0]):
        row = row_T[place]
        for at in range(width):
            upper, lower = upper_NP[row, at], lower_NP[row, at]
            code_TD[place, at] = np.int8((((upper & 15) << 4) | (lower & 15)) ^ 128)
        for at in range(dim - width):
            upper, lower = upper_NP[row, at], lower_NP[row, at]
            code_TD[place, width + at] = np.int8(((upper & 240) | (lower >> 4)) ^ 128)


@compiled
def _spread_plane(plane_NP: NDArray[np.uint8], row_T: NDArray[np.int64], code_TD: NDArray[np.int8]) -> None:
    width, dim = plane_NP.shape[1], code_TD.shape[1]
    for place in range(row_T.shape[0]):
        row = row_T[place]
        for at in range(width):
            code_TD[place, at] = np.int8(plane_NP[row, at] & 15)
        for at in range(dim - width):
            code_TD[place, width + at] = np.int8(plane_NP[row, at] >> 4)

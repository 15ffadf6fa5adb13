"""Number formats in compiled code: bfloat16 as the 16 bits it is, and a power of two that becomes vector code.

numba has no bfloat16; torch's tensors come as uint16. A function that is written with `widen` and `narrow` compiles
for both formats. Its sums may be taken in any order, so that they become vector code too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from kernels.cpu.threads import count_cores, scan_pool

F = TypeVar("F", bound=Callable[..., object])
_LOOSE = {"reassoc", "contract", "nsz"}


def compiled_loose(function: F) -> F:
    """As `kernels.cpu.compile.compiled`, with sums in any order, products added without rounding, and x / 0 = inf."""
    try:
        return cast(F, numba.njit(nogil=True, cache=True, fastmath=_LOOSE, error_model="numpy")(function))
    except RuntimeError:  # no folder to keep machine code in: compile in every process
        return cast(F, numba.njit(nogil=True, fastmath=_LOOSE, error_model="numpy")(function))


def _generate_widen(typing_context: object, value: Any) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> object:
        if signature.args[0] == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(value), generate


# The float32 of a float32, or of a bfloat16's bits.
widen: Callable[[Any], Any] = cast(Any, intrinsic(_generate_widen))


def _generate_narrow(typing_context: object, value: Any, array: Any) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> object:
        if signature.return_type == types.float32:
            return arguments[0]
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        rounded = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
        return builder.trunc(builder.lshr(rounded, ir.Constant(word, 16)), ir.IntType(16))

    return array.dtype(types.float32, array), generate


# A float32 as an array's elements are: itself, or the bits of the nearest bfloat16, ties to even. Not for NaN.
narrow: Callable[[Any, Any], Any] = cast(Any, intrinsic(_generate_narrow))


def _generate_bits(typing_context: object, value: object) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: object, arguments: tuple[Any, ...]) -> object:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


_bits: Callable[[Any], Any] = cast(Any, intrinsic(_generate_bits))


def _generate_float(typing_context: object, value: object) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: object, arguments: tuple[Any, ...]) -> object:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


_float: Callable[[Any], Any] = cast(Any, intrinsic(_generate_float))

_ROUNDING = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest whole number in the lowest bits
_ROUNDING_BITS = np.int32(0x4B400000)
_LOWEST = np.float32(-126.0)
# Least maximum relative error on [-1/2, 1/2], 2e-7.
_C1, _C2, _C3 = np.float32(0.693147182), np.float32(0.240226462), np.float32(0.0555033647)
_C4, _C5, _C6 = np.float32(0.00961812911), np.float32(0.00133981463), np.float32(0.000154034997)
_ONE = np.float32(1.0)
_EXPONENT = np.int32(23)


@compiled_loose
def exp2(x: Any) -> Any:
    """2^x of a float32 up to 127, without a branch; 2^-126 for all below."""
    x = max(x, _LOWEST)
    whole = np.int32(_bits(np.float32(x + _ROUNDING)) - _ROUNDING_BITS)
    part = np.float32(x - np.float32(whole))
    power = _C6
    power = power * part + _C5
    power = power * part + _C4
    power = power * part + _C3
    power = power * part + _C2
    power = power * part + _C1
    power = power * part + _ONE
    return _float(np.int32(_bits(np.float32(power)) + np.int32(whole << _EXPONENT)))


def _generate_larger(typing_context: object, one: object, other: object) -> tuple[object, Callable[..., object]]:
    def generate(context: Any, builder: Any, signature: object, arguments: tuple[Any, ...]) -> object:
        one, other = arguments
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", one, other, flags=flags), one, other, flags=flags)

    return types.float32(types.float32, types.float32), generate


# The larger of two float32, neither NaN: where that has to be looked for, a maximum is no vector code.
larger: Callable[[Any, Any], Any] = cast(Any, intrinsic(_generate_larger))


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A CPU tensor's memory as numba takes it; bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def in_parts(run: Callable[..., None], num_rows: int, work: int, *arguments: object) -> None:
    """Call run(*arguments, start, stop) for parts of the rows, as many as torch has threads.

    work: about how many nanoseconds the whole takes; parts of less than 20 microseconds cost more than they save.
    """
    num_parts = max(1, min(torch.get_num_threads(), count_cores(), num_rows, work // 20_000))
    cuts = [num_rows * place // num_parts for place in range(num_parts + 1)]
    others: list[Future[None]] = [
        scan_pool().submit(run, *arguments, start, stop) for start, stop in zip(cuts[1:-1], cuts[2:], strict=True)
    ]
    run(*arguments, cuts[0], cuts[1])
    for other in others:
        other.result()

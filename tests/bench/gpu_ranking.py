"""The ranker's GPU kernels on this machine's card; `tests.bench.gpu` runs it.

Each op against its reference first, then timed beside the same formula in eager torch and under torch.compile.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.cross import low_rank_cross
from kernels.embedding_bag import QuantisedRows, embedding_bag
from tests.bench.record import Record

CROSS_SHAPES = [(500, 256, 32), (8192, 1024, 64), (16384, 3072, 128)]
"""Rows, width, rank: one request; training batches of a small and of a large model."""
BAG_SHAPES = [(500, 8, 16), (65536, 8, 16), (65536, 8, 128)]
"""Bags, places, dimensions."""
TABLE_ROWS = 1 << 16
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}

Timer = Callable[[Callable[[], object]], list[float]]


def measure(record: Record, card: str, time_ms: Timer) -> list[str]:
    """Fill the record; returns the ops whose values or gradients differ from the reference's."""
    random = torch.Generator("cuda").manual_seed(1)
    failed = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in CROSS_SHAPES:
            failed += _time_cross(record, card, time_ms, random, dtype, *shape)
    for shape in BAG_SHAPES:
        failed += _time_bags(record, card, time_ms, random, *shape)
    return failed


def _cross(x0_ND: Tensor, x_ND: Tensor, down_RD: Tensor, up_DR: Tensor, bias_D: Tensor) -> Tensor:
    """As a module of two linear layers computes it."""
    return x0_ND * torch.nn.functional.linear(torch.nn.functional.linear(x_ND, down_RD), up_DR, bias_D) + x_ND


def _time_cross(
    record: Record,
    card: str,
    time_ms: Timer,
    random: torch.Generator,
    dtype: torch.dtype,
    num_rows: int,
    dim: int,
    rank: int,
) -> list[str]:
    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device="cuda", generator=random) * scale).to(dtype).requires_grad_()

    inputs = [
        draw(num_rows, dim), draw(num_rows, dim), draw(rank, dim, scale=dim**-0.5),
        draw(dim, rank, scale=rank**-0.5), draw(dim),
    ]  # fmt: skip
    grad = torch.randn(num_rows, dim, device="cuda", generator=random).to(dtype)
    forms: dict[str, Callable[..., Tensor]] = {
        "triton": lambda *tensors: low_rank_cross(*tensors, backend="gpu"),
        "eager": _cross,
        "compiled": torch.compile(_cross),
    }

    def step(form: Callable[..., Tensor]) -> list[Tensor]:
        for tensor in inputs:
            tensor.grad = None
        out = form(*inputs)
        out.backward(grad)
        return [out.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]

    kind = str(dtype).removeprefix("torch.")
    name = f"cross_{kind}_{num_rows}x{dim}_r{rank}"
    found = step(forms["triton"])
    expected = step(lambda *tensors: low_rank_cross(*tensors, backend="reference"))
    medians = {}
    for form, run in forms.items():
        with torch.no_grad():
            forward = time_ms(lambda run=run: run(*inputs))
        both = time_ms(lambda run=run: step(run))
        for what, samples in (("forward", forward), ("forward_backward", both)):
            row = record.add_samples(f"{name}_{what}_{form}", samples, "ms", card)
            record.figures[f"gpu_{name}_{what}_{form}_ms"] = row.value
            medians[what, form] = statistics.median(samples)
    for what in ("forward", "forward_backward"):
        record.figures[f"gpu_{name}_{what}_vs_compile"] = medians[what, "triton"] / medians[what, "compiled"]
    return [] if all(map(_agrees, found, expected)) else [name]


def _time_bags(
    record: Record, card: str, time_ms: Timer, random: torch.Generator, num_bags: int, width: int, dim: int
) -> list[str]:
    weight = torch.randn(4 * TABLE_ROWS, dim, device="cuda", generator=random)
    hashes = torch.randint(-(2**63), 2**63 - 1, (num_bags, width), device="cuda", generator=random)
    hashes[torch.rand(num_bags, width, device="cuda", generator=random) < 0.3] = 0
    compiled = torch.compile(lambda table: embedding_bag(hashes, table, TABLE_ROWS, TABLE_ROWS, backend="reference"))
    failed = []
    for kind, table in (("fp32", weight), ("int8", QuantisedRows.of(weight))):
        name = f"bag_{kind}_{num_bags}x{width}_d{dim}"

        def run(backend: str, table: Tensor | QuantisedRows = table) -> Tensor:
            return embedding_bag(hashes, table, TABLE_ROWS, TABLE_ROWS, backend=backend)  # type: ignore[arg-type]

        if not _agrees(run("gpu"), run("reference")):
            failed.append(name)
        forms: dict[str, Callable[[], object]] = {
            "triton": lambda run=run: run("gpu"),  # type: ignore[misc]
            "eager": lambda run=run: run("reference"),  # type: ignore[misc]
            "compiled": lambda table=table: compiled(table),  # type: ignore[misc]
        }
        medians = {}
        for form, call in forms.items():
            row = record.add_samples(f"{name}_{form}", time_ms(call), "ms", card)
            record.figures[f"gpu_{name}_{form}_ms"] = medians[form] = row.value
        record.figures[f"gpu_{name}_vs_compile"] = medians["triton"] / medians["compiled"]
    failed += _check_bag_gradient(hashes, weight)
    return failed


def _check_bag_gradient(hashes: Tensor, weight: Tensor) -> list[str]:
    grads = []
    for backend in ("gpu", "reference"):
        leaf = weight.clone().requires_grad_()
        embedding_bag(hashes, leaf, TABLE_ROWS, TABLE_ROWS, backend=backend).square().sum().backward()  # type: ignore[arg-type]
        assert leaf.grad is not None
        grads.append(leaf.grad.to_dense())
    return [] if _agrees(*grads) else [f"bag_gradient_{list(hashes.shape)}"]


def _agrees(found: Tensor, expected: Tensor) -> bool:
    largest = expected.abs().max().clamp(min=1e-9)
    return bool(((found - expected).abs().max() / largest) <= TOLERANCE[found.dtype])

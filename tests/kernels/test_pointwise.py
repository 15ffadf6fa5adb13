import pytest
import torch

from kernels.pointwise import add, add_norm, rotate, swiglu

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
SHAPES = [(1, 2), (3, 18), (70, 576), (0, 8)]


def draw(*shape, dtype=torch.float32, scale=1.0, seed=0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def near(found, expected, tolerance):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance / 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_delta", [True, False])
def test_add_norm(shape, dtype, has_delta):
    x, weight = draw(*shape), draw(shape[1], seed=1)
    delta = draw(*shape, dtype=dtype, seed=2) if has_delta else None
    wide = x.double() + (0 if delta is None else delta.double())
    expected = (wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight).to(dtype)
    for backend in ("cpu", "reference"):
        stream = x.clone()
        near(add_norm(stream, delta, weight, 1e-5, dtype, backend=backend), expected, DTYPES[dtype])
        near(stream, wide.float(), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add(dtype):
    x, delta = draw(5, 7), draw(5, 7, dtype=dtype, seed=1)
    for backend in ("cpu", "reference"):
        stream = x.clone()
        add(stream, delta, backend=backend)
        near(stream, x + delta.float(), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_rotate_turns_pairs_as_complex_numbers(dtype, half):
    x, angles = draw(6, 5, 8, dtype=dtype), draw(6, 4, scale=3.0, seed=1)
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double()) * torch.exp(1j * angles.double())[:, None]
    expected = torch.cat([pairs.real, pairs.imag], -1).to(dtype)
    expected[:, 3:] = x[:, 3:]
    rotation = torch.stack([angles.cos(), angles.sin()])
    if not half:
        rotation = torch.cat([rotation, rotation], -1)
    for backend in ("cpu", "reference"):
        turned = x.clone()
        rotate(turned, 3, rotation, backend=backend)
        near(turned, expected, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu_at_every_size_of_the_gate(dtype):
    gate = torch.cat([torch.linspace(-200, 200, 1001), torch.tensor([0.0, -1e30, 1e30])]).to(dtype)
    x = torch.stack([torch.cat([gate, draw(len(gate), dtype=dtype)])] * 2)
    wide = x.double()
    expected = (torch.nn.functional.silu(wide[:, : len(gate)]) * wide[:, len(gate) :]).to(dtype)
    for backend in ("cpu", "reference"):
        near(swiglu(x, backend=backend), expected, DTYPES[dtype])


def test_any_number_of_threads_gives_the_same():
    x, weight = draw(300, 512), draw(512, seed=1)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append((add_norm(x.clone(), x, weight, 1e-5, torch.bfloat16), swiglu(x)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: add(draw(2, 3).bfloat16(), draw(2, 3)), "x: torch.bfloat16"),
        (lambda: add(draw(2, 3), draw(2, 4)), r"delta: torch.float32\[2, 4\], expected .*\[2,3\]"),
        (lambda: add_norm(draw(2, 3), None, draw(4), 1e-5, torch.float32), "weight"),
        (lambda: add_norm(draw(2, 3), None, draw(3), 1e-5, torch.float16), "dtype: torch.float16"),
        (lambda: swiglu(draw(2, 3)), "expected an even width"),
        (lambda: swiglu(draw(4, 2).T), "expected contiguous"),
        (lambda: rotate(draw(2, 3, 4), 4, draw(2, 2, 4)), "up to 3 heads"),
        (lambda: rotate(draw(2, 3, 4), 2, draw(2, 3, 4)), r"rotation: torch.float32\[2, 3, 4\]"),
        (lambda: rotate(draw(2, 3, 4), 2, draw(2, 2, 3)), "rotation"),
        (lambda: swiglu(draw(2, 4), backend="gpu"), "backend 'gpu'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

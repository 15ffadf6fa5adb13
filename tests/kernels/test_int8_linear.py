import pytest
import torch

from kernels.int8_linear import encode_weight, int8_linear


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weights_that_are_codes_stay_what_they_are():
    codes = torch.tensor([[127, -3, 0], [1, 2, -127], [0, 0, 0]], dtype=torch.int8)
    code_IO, scale_O = encode_weight(codes.float() * torch.tensor([[0.5], [2.0], [1.0]]))
    assert torch.equal(code_IO, codes.T) and scale_O.tolist() == [0.5, 2.0, 1.0]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_that_are_codes_multiply_exactly(backend):
    x = torch.tensor([[127.0, -5.0, 3.0], [0.0, 0.0, 0.0], [1.27, 0.03, -1.0]])
    weight = torch.tensor([[127.0, 2.0, -1.0], [0.5, -63.5, 1.0]])
    y = int8_linear(x, *encode_weight(weight), backend=backend)
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 64, 33), (70, 576, 40), (3, 7, 200)], ids=str)
def test_the_cpu_equals_the_reference_and_is_near_the_exact_product(shape, dtype):
    rows, inputs, outputs = shape
    x, weight = draw(rows, inputs).to(dtype), draw(outputs, inputs, seed=1)
    codes = encode_weight(weight)
    found, expected = (int8_linear(x, *codes, backend=backend) for backend in ("cpu", "reference"))
    assert found.dtype == dtype and found.shape == (rows, outputs)
    size = inputs**0.5
    torch.testing.assert_close(found.float() / size, expected.float() / size, rtol=1e-2, atol=5e-3)
    exact = (x.double() @ weight.double().T).float() / size
    torch.testing.assert_close(found.float() / size, exact, rtol=0.05, atol=0.05)


def test_a_row_does_not_depend_on_its_neighbours():
    x, codes = draw(90, 48), encode_weight(draw(20, 48, seed=1))
    whole = int8_linear(x * torch.logspace(-3, 3, 90)[:, None], *codes)
    alone = torch.cat([int8_linear(row[None], *codes) for row in x * torch.logspace(-3, 3, 90)[:, None]])
    assert torch.equal(whole, alone)


def test_no_rows():
    assert int8_linear(draw(0, 5), *encode_weight(draw(4, 5))).shape == (0, 4)


@pytest.mark.parametrize(
    ("x", "code", "scale", "message"),
    [
        (draw(2, 3).double(), torch.zeros(3, 4, dtype=torch.int8), torch.ones(4), "x: torch.float64"),
        (draw(3, 2).T, torch.zeros(3, 4, dtype=torch.int8), torch.ones(4), "expected contiguous"),
        (
            draw(2, 3),
            torch.zeros(4, 3, dtype=torch.int8),
            torch.ones(4),
            r"codes: torch.int8\[4, 3\], expected .*\[3,O\]",
        ),
        (draw(2, 3), torch.zeros(3, 4), torch.ones(4), "codes: torch.float32"),
        (draw(2, 3), torch.zeros(3, 4, dtype=torch.int8), torch.ones(3), r"scales: torch.float32\[3\]"),
    ],
)
def test_wrong_arguments_are_named(x, code, scale, message):
    with pytest.raises(ValueError, match=message):
        int8_linear(x, code, scale)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="backend 'gpu'"):
        int8_linear(draw(2, 3), *encode_weight(draw(4, 3)), backend="gpu")

import pytest
import torch

from kernels.cross import MAX_RANK, low_rank_cross


def test_equals_the_formula_written_out():
    x0, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    down, up, bias = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [3.0]]), torch.tensor([0.5, 0.0])
    # V^T x = -1, U h + b = [-1.5, -3]
    assert low_rank_cross(x0, x, down, up, bias).tolist() == [[1.0 * -1.5 + 3.0, 2.0 * -3.0 + 4.0]]


def test_gradients_are_those_of_finite_differences():
    random = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (3, 4), (2, 4), (4, 2), (4,)]
    inputs = [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]
    low_rank_cross(*inputs).pow(3).sum().backward()
    step = 1e-2
    for number, leaf in enumerate(inputs):
        for place in range(leaf.numel()):
            sums = []
            for sign in (1.0, -1.0):
                moved = [tensor.detach().double() for tensor in inputs]
                moved[number].view(-1)[place] += sign * step
                x0, x, down, up, bias = moved
                sums.append(float((x0 * (x @ down.T @ up.T + bias) + x).pow(3).sum()))
            slope = (sums[0] - sums[1]) / (2 * step)
            assert float(leaf.grad.view(-1)[place]) == pytest.approx(slope, rel=2e-2, abs=2e-2)


@pytest.mark.parametrize(
    ("place", "tensor", "message"),
    [
        (0, torch.zeros(2, 3), r"x0: torch.float32\[2, 3\], expected torch.float32\[2, 4\]"),
        (1, torch.zeros(2, 4).double(), "x: torch.float64"),
        (1, torch.zeros(4), r"x: torch.float32\[4\]"),
        (2, torch.zeros(MAX_RANK + 1, 4), "down"),
        (2, torch.zeros(2, 4).half(), "down: torch.float16"),
        (3, torch.zeros(4, 3), r"up: torch.float32\[4, 3\]"),
        (4, torch.zeros(5), "bias"),
        (4, torch.zeros(4, device="meta"), "bias: on meta"),
    ],
)
def test_wrong_arguments_are_named(place, tensor, message):
    arguments = [torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(4, 2), torch.zeros(4)]
    arguments[place] = tensor
    with pytest.raises(ValueError, match=message):
        low_rank_cross(*arguments)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="backend 'cpu'"):
        low_rank_cross(*(torch.zeros(s) for s in [(2, 4), (2, 4), (2, 4), (4, 2), (4,)]), backend="cpu")

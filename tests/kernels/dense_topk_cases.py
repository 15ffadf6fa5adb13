"""Cases of the GPU kernels of `dense_topk`: run by test_dense_topk_gpu.py in a process of their own.

pytest does not collect this file by itself. Under TRITON_INTERPRET=1 the kernels run on CPU tensors; without it
they run natively and need a card.
"""

import os

import pytest
import torch

import kernels.gpu.dense_topk as gpu
from kernels.dense_topk import OK, OVERFLOW, TOO_FEW, DenseRows, dense_topk

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
KINDS = ("fp16", "int8", "int8_rescored")


def make_rows(seed, num_rows, dim, kind, vectors=None):
    random = torch.Generator().manual_seed(seed)
    if vectors is None:
        # Small whole numbers: float32 sums of their products are exact in any order, and they tie often.
        whole = torch.randint(-3, 4, (num_rows, dim), generator=random).float()
        vectors = whole if kind == "fp16" else torch.randn(num_rows, dim, generator=random)
    keys = (torch.randperm(num_rows, generator=random) - num_rows // 2) * 2**33
    if kind == "fp16":
        return DenseRows(key_N=keys.to(DEVICE), vector_ND=vectors.half().to(DEVICE))
    mean = vectors.mean(0)
    scale = ((vectors - mean).abs().amax(1) / 127).clamp_min(1e-12)
    code = ((vectors - mean) / scale[:, None]).round().to(torch.int8)
    return DenseRows(
        key_N=keys.to(DEVICE),
        code_ND=code.to(DEVICE),
        scale_N=scale.to(DEVICE),
        mean_D=mean.to(DEVICE),
        vector_ND=vectors.to(DEVICE) if kind == "int8_rescored" else None,
    )


def make_queries(seed, batch, dim, kind):
    random = torch.Generator().manual_seed(seed)
    if kind == "fp16":
        return torch.randint(-3, 4, (batch, dim), generator=random).float().to(DEVICE)
    return torch.randn(batch, dim, generator=random).to(DEVICE)


def pack(flags):
    """bool[..., N] -> int64[..., ceil(N / 64)]"""
    padded = torch.nn.functional.pad(flags, (0, -flags.shape[-1] % 64)).unflatten(-1, (-1, 64))
    return (padded.long() << torch.arange(64)).sum(-1).to(DEVICE)


def make_mask(name, batch, num_rows):
    random = torch.Generator().manual_seed(9)
    if name == "all":
        return torch.full(((num_rows + 63) // 64,), -1, device=DEVICE)  # the bits past the last row too
    share = {"none": 0.0, "half": 0.5, "sparse": 0.01, "own": 0.3}[name]
    flags = torch.rand(batch if name == "own" else 1, num_rows, generator=random) < share
    return pack(flags if name == "own" else flags[0])


def assert_same(found, expected):
    for name, ours, theirs in zip(found._fields, found, expected, strict=True):
        assert torch.equal(ours, theirs), name


def check(query, rows, mask, k, **options):
    expected = dense_topk(query, rows, mask, k, backend="reference", **options)
    found = dense_topk(query, rows, mask, k, backend="gpu", **options)
    assert_same(found, expected)
    return found


@pytest.fixture
def few_candidates(monkeypatch):
    """Thresholds and buffers as for many rows, at sizes that the interpreter can run."""
    monkeypatch.setattr(gpu, "LEAST_TARGET", 256)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("num_rows", "dim", "batch", "k"),
    [(1, 64, 1, 1), (127, 64, 3, 10), (128, 96, 16, 5), (300, 128, 3, 301), (450, 100, 1, 64), (70, 300, 17, 7)],
)
def test_equals_the_reference_at_odd_shapes(kind, num_rows, dim, batch, k):
    rows = make_rows(num_rows, num_rows, dim, kind)
    check(make_queries(dim, batch, dim, kind), rows, make_mask("half", batch, num_rows), k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", ["all", "none", "sparse", "own"])
def test_equals_the_reference_under_any_mask(kind, mask):
    rows = make_rows(3, 700, 64, kind)
    found = check(make_queries(4, 3, 64, kind), rows, make_mask(mask, 3, 700), 30)
    if mask == "none":
        assert (found.key_BK == -1).all() and (found.score_BK == -torch.inf).all() and (found.row_BK == -1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", ["all", "own"])
def test_equals_the_reference_with_sampled_thresholds(kind, mask, few_candidates):
    rows = make_rows(5, 4001, 64, kind)
    query = make_queries(6, 3, 64, kind)
    workspace = gpu.Workspace(rows, batch=3, k=20, rescore=2)
    words = make_mask(mask, 3, 4001)
    found = workspace.run(query, rows, words)
    assert found.status_B.tolist() == [OK] * 3
    assert_same(found, dense_topk(query, rows, words, 20, rescore=2, backend="reference"))


def test_groups_of_samples_give_a_threshold(monkeypatch):
    monkeypatch.setattr(gpu, "SAMPLE_RANK", 4)
    monkeypatch.setattr(gpu, "LEAST_TARGET", 64)
    rows = make_rows(7, 17_000, 32, "int8")
    workspace = gpu.Workspace(rows, batch=1, k=8)
    assert workspace._group == gpu.SAMPLE_GROUP
    query, words = make_queries(8, 1, 32, "int8"), make_mask("all", 1, 17_000)
    found = workspace.run(query, rows, words)
    assert found.status_B.tolist() == [OK]
    assert_same(found, dense_topk(query, rows, words, 8, backend="reference"))


def test_float16_is_within_the_rounding_of_float32_sums():
    vectors = torch.nn.functional.normalize(torch.randn(900, 128, generator=torch.Generator().manual_seed(1)), dim=1)
    rows = make_rows(1, 900, 128, "fp16", vectors)
    query = torch.nn.functional.normalize(make_queries(2, 3, 128, "int8"), dim=1)
    words = make_mask("half", 3, 900)
    found = dense_topk(query, rows, words, 40, backend="gpu")
    expected = dense_topk(query, rows, words, 40, backend="reference")
    torch.testing.assert_close(found.score_BK, expected.score_BK, atol=1e-5, rtol=0)
    everything = dense_topk(query, rows, words, 900, backend="reference")
    for place in range(3):
        exact = dict(zip(everything.key_BK[place].tolist(), everything.score_BK[place].tolist(), strict=True))
        for key, score in zip(found.key_BK[place].tolist(), found.score_BK[place].tolist(), strict=True):
            assert abs(exact[key] - score) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_lower_key(kind):
    vectors = torch.ones(500, 64) * torch.tensor([1.0, -1.0]).repeat(32)
    vectors[::7] *= 2
    rows = make_rows(11, 500, 64, kind, vectors)
    found = check(vectors[:2].to(DEVICE), rows, make_mask("all", 2, 500), 100)
    tied = found.key_BK[0, found.score_BK[0] == found.score_BK[0, -1]]
    assert tied.tolist() == sorted(tied.tolist())


def test_a_zero_query_ties_every_row(few_candidates):
    rows = make_rows(12, 2000, 32, "fp16")
    check(torch.zeros(1, 32, device=DEVICE), rows, make_mask("sparse", 1, 2000), 5)


def test_too_many_ties_overflow_and_run_again(few_candidates):
    rows = make_rows(13, 2000, 32, "fp16", torch.ones(2000, 32))
    query = torch.ones(2, 32, device=DEVICE)
    words = make_mask("all", 2, 2000)
    assert gpu.Workspace(rows, batch=2, k=3).run(query, rows, words).status_B.tolist() == [OVERFLOW] * 2
    assert check(query, rows, words, 3).status_B.tolist() == [OK] * 2


def test_only_the_failed_query_runs_again(few_candidates):
    rows = make_rows(13, 2000, 32, "fp16")
    query = make_queries(3, 2, 32, "fp16")
    query[1] = 0
    words = make_mask("all", 2, 2000)
    assert gpu.Workspace(rows, batch=2, k=3).run(query, rows, words).status_B.tolist() == [OK, OVERFLOW]
    check(query, rows, words, 3)


def test_too_few_candidates_are_reported(monkeypatch, few_candidates):
    """The sampled rows are the only good ones, so that their threshold lets hardly anything else through."""
    monkeypatch.setattr(gpu, "SAMPLE_RANK", 8)
    row = torch.arange(2000)
    stride = 256 // 8
    sample = torch.arange(63)
    vectors = torch.zeros(2000, 32)
    vectors[:, 0] = -row.float() / 2000
    vectors[(sample * stride + ((sample * 2654435761) >> 16) % stride).clamp_max(1999)] = 1
    rows = make_rows(14, 2000, 32, "fp16", vectors)
    query = torch.ones(1, 32, device=DEVICE)
    words = make_mask("all", 1, 2000)
    assert gpu.Workspace(rows, batch=1, k=100).run(query, rows, words).status_B.tolist() == [TOO_FEW]
    check(query, rows, words, 100)


def test_a_workspace_serves_changing_queries_masks_and_rows(few_candidates):
    rows = make_rows(15, 1500, 64, "int8_rescored")
    workspace = gpu.Workspace(rows, batch=2, k=10)
    for seed, mask in enumerate(["all", "none", "own", "sparse"]):
        rows = make_rows(seed, 1500, 64, "int8_rescored")
        query, words = make_queries(seed, 2, 64, "int8"), make_mask(mask, 2, 1500)
        check(query, rows, words, 10, workspace=workspace)


def test_a_workspace_refuses_what_it_was_not_made_for():
    rows = make_rows(1, 300, 64, "fp16")
    words = make_mask("all", 1, 300)
    workspace = gpu.Workspace(rows, batch=2, k=10)
    with pytest.raises(ValueError, match="workspace for 2 queries"):
        workspace.run(make_queries(1, 3, 64, "fp16"), rows, words)
    with pytest.raises(ValueError, match="workspace for"):
        workspace.run(make_queries(1, 2, 64, "fp16"), make_rows(1, 301, 64, "fp16"), words)
    with pytest.raises(ValueError, match=r"\(2, 10, 4\)"):
        dense_topk(make_queries(1, 2, 64, "fp16"), rows, words, 11, backend="gpu", workspace=workspace)
    with pytest.raises(ValueError, match="k 0"):
        gpu.Workspace(rows, batch=1, k=0)


if DEVICE == "cuda":

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_captured_graph_follows_new_queries_and_masks(kind):
        rows = make_rows(16, 50_000, 128, kind)
        query, words = make_queries(0, 4, 128, kind), make_mask("half", 4, 50_000)
        workspace = gpu.Workspace(rows, batch=4, k=50)
        workspace.run(query, rows, words)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = workspace.run(query, rows, words)
        for seed, mask in enumerate(["all", "sparse", "half"], 1):
            query.copy_(make_queries(seed, 4, 128, kind))
            words.copy_(make_mask(mask, 4, 50_000))
            graph.replay()
            assert_same(found, dense_topk(query, rows, words, 50, backend="reference"))

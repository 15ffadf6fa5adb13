"""The ranker's GPU kernels: their numbers under Triton's interpreter, their code for cards that are not here."""

import json

import pytest
import torch

from tests.kernels.test_dense_topk_gpu import run

triton = pytest.importorskip("triton")

CASES = "tests/kernels/ranking_cases.py"
SHARED_BYTES = {80: 80 << 10, 90: 112 << 10}  # so that two blocks share a processor
PRODUCTS = {
    (80, "fp32_tf32"): "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    (80, "fp16_ieee"): "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    (80, "bf16_ieee"): "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    (90, "fp32_tf32"): "tf32.tf32",
    (90, "fp16_ieee"): "f32.f16.f16",
    (90, "bf16_ieee"): "f32.bf16.bf16",
}


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7), reason="this Triton's interpreter fails with numpy 2.4"
)
def test_kernels_equal_the_reference_under_the_interpreter():
    run("-m", "pytest", CASES, "-q", "-p", "no:cacheprovider", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_equal_the_reference_on_the_card():
    run("-m", "pytest", CASES, "-q", "-p", "no:cacheprovider")


@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_to_tensor_core_code(arch, tmp_path):
    output = run("-m", "tests.kernels.compile_ahead", str(arch), "ranking", "192", TRITON_CACHE_DIR=str(tmp_path))
    compiled = json.loads(output)
    assert len(compiled) == 3 * 4 + 3
    for made in compiled:
        assert made["cubin_bytes"] > 0 and made["shared_bytes"] <= SHARED_BYTES[arch], made
        kind = made["name"].rpartition("_")[0].rpartition("_")[2] + "_" + made["name"].rpartition("_")[2]
        if (arch, kind) in PRODUCTS:
            assert made["products"] and all(PRODUCTS[arch, kind] in product for product in made["products"]), made
        elif made["name"].startswith("cross"):
            assert not made["products"], f"plain float32 goes through no tensor core: {made}"


def test_the_ops_need_torch_and_triton_alone():
    """A GPU image may hold nothing else of ours: no numba, no arrow."""
    code = """
import sys
for name in ("numba", "pyarrow", "pydantic", "index", "models", "services"):
    sys.modules[name] = None
import kernels.cross, kernels.gpu.cross, kernels.reference.cross
import kernels.embedding_bag, kernels.gpu.embedding_bag, kernels.reference.embedding_bag
"""
    run("-c", code)

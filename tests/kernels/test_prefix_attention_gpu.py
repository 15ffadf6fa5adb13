"""Prefix attention in Triton: its numbers under the interpreter, its code for cards that are not here."""

import json

import pytest
import torch

from tests.kernels.test_dense_topk_gpu import run

triton = pytest.importorskip("triton")

CASES = "tests/kernels/prefix_attention_cases.py"
SHARED_BYTES = {80: 80 << 10, 90: 112 << 10}  # so that two blocks share a processor
PRODUCTS = {
    "fp32_tf32": ("tf32.tf32", "tf32.tf32"),
    "fp16_ieee": ("f32.f16.f16.f32", "f32.f16.f16"),
    "bf16_ieee": ("f32.bf16.bf16.f32", "f32.bf16.bf16"),
}


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7), reason="this Triton's interpreter fails with numpy 2.4"
)
def test_the_kernel_equals_the_reference_under_the_interpreter():
    run("-m", "pytest", CASES, "-q", "-p", "no:cacheprovider", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_equals_the_reference_on_the_card():
    run("-m", "pytest", CASES, "-q", "-p", "no:cacheprovider")


@pytest.mark.parametrize("arch", [80, 90])
def test_the_kernel_compiles_to_tensor_core_code(arch, tmp_path):
    output = run(
        "-m", "tests.kernels.compile_ahead", str(arch), "prefix_attention", "64", TRITON_CACHE_DIR=str(tmp_path)
    )
    compiled = json.loads(output)
    assert len(compiled) == 4
    for made in compiled:
        assert made["cubin_bytes"] > 0 and made["shared_bytes"] <= SHARED_BYTES[arch], made
        assert made["wide_loads"] > 0, made
        kind = "_".join(made["name"].split("_")[1:3])
        if kind in PRODUCTS:
            wanted = PRODUCTS[kind][arch == 90]
            assert made["products"] and all(wanted in product for product in made["products"]), made
        else:
            assert not made["products"], f"plain float32 goes through no tensor core: {made}"


def test_the_op_needs_torch_and_triton_alone():
    """A GPU image may hold nothing else of ours: no numba, no arrow."""
    code = """
import sys
for name in ("numba", "pyarrow", "pydantic", "index", "models", "services"):
    sys.modules[name] = None
import kernels.prefix_attention, kernels.gpu.prefix_attention, kernels.reference.prefix_attention
"""
    run("-c", code)

"""The GPU kernels of `dense_topk`: their numbers under Triton's interpreter, their code for cards that are not here.

Each mode is a process of its own: Triton reads TRITON_INTERPRET when it is first imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
# What one thread block may have: 163 KiB on sm_80, 227 KiB on sm_90. Less, so that several blocks share a processor.
SHARED_BYTES = 48 << 10
PRODUCTS = {
    (80, "fp16"): "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    (80, "int8"): "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
    (90, "fp16"): "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16",
    (90, "int8"): "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8",
}


def run(*command, **variables):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=kept | variables, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7), reason="this Triton's interpreter fails with numpy 2.4"
)
def test_kernels_equal_the_reference_under_the_interpreter():
    cases = "tests/kernels/dense_topk_cases.py"
    run("-m", "pytest", cases, "-q", "-p", "no:cacheprovider", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_equal_the_reference_on_the_card():
    run("-m", "pytest", "tests/kernels/dense_topk_cases.py", "-q", "-p", "no:cacheprovider")


@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_to_tensor_core_code(arch, tmp_path):
    output = run("-m", "tests.kernels.compile_ahead", str(arch), "dense_topk", "128", TRITON_CACHE_DIR=str(tmp_path))
    compiled = json.loads(output)
    scans = [made for made in compiled if made["name"].startswith(("scan", "sample"))]
    assert len(scans) == 8 and len(compiled) == 14
    for made in compiled:
        assert made["cubin_bytes"] > 0
        assert made["shared_bytes"] <= SHARED_BYTES, made
    for made in scans:
        assert made["products"] == [PRODUCTS[arch, made["name"].split("_")[1]]], made
        assert made["wide_loads"] > 0, f"rows are not read 16 bytes at a time: {made}"


def test_the_op_needs_torch_and_triton_alone():
    """A GPU image may hold nothing else of ours: no numba, no arrow."""
    code = """
import sys
for name in ("numba", "pyarrow", "pydantic", "index", "models", "services"):
    sys.modules[name] = None
import kernels.dense_topk, kernels.gpu.dense_topk, kernels.reference.dense_topk
"""
    run("-c", code)

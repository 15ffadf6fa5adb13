"""Hits are the same on a lesser machine: without AVX-512, without AVX, without numba or its threads, on one core."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names processors of x86-64")
linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are taken away by sched_setaffinity")


def run(wish, **environment):
    """What the child of this name printed; it compares every answer with the definition."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.index.fallback_child", wish],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def without_instructions(folder, processor, product):
    """Compiled for another processor, in a cache of its own; torch's integer product is held back as well."""
    return run(
        "other processor",
        NUMBA_CPU_NAME=processor,
        NUMBA_CPU_FEATURES="",
        NUMBA_CACHE_DIR=str(folder),
        ONEDNN_MAX_CPU_ISA=product,
        ATEN_CPU_CAPABILITY="default",
    )


@x86
def test_without_avx(tmp_path):
    said = without_instructions(tmp_path, "x86-64-v2", "SSE41")
    assert said["compiled_for"] == "x86-64-v2" and {"gather", "stream"} <= set(said["strategies"])


@x86
def test_with_avx2_only(tmp_path):
    said = without_instructions(tmp_path, "x86-64-v3", "AVX2")
    assert said["compiled_for"] == "x86-64-v3" and {"gather", "stream"} <= set(said["strategies"])


def test_without_numba():
    assert run("no numba") == {"strategies": ["empty", "gather"], "compiled_for": None}


def test_without_a_threading_layer_of_numba():
    said = run("as it is", NUMBA_THREADING_LAYER="tbb", NUMBA_NUM_THREADS="1")
    assert {"gather", "stream"} <= set(said["strategies"])


@linux
def test_on_one_core():
    assert {"gather", "stream"} <= set(run("one core")["strategies"])

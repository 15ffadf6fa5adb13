"""Run every benchmark, one after another: `python -m tests.bench [--quick]`."""

import argparse
import subprocess
import sys

BENCHMARKS = ("gateway", "retrieval", "codes", "search_load", "ranking", "retrieval_quality", "llm", "gpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the short form: at most 12 minutes each")
    flags = ["--quick"] if parser.parse_args().quick else []
    failed = [
        name for name in BENCHMARKS if subprocess.run([sys.executable, "-m", f"tests.bench.{name}", *flags]).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

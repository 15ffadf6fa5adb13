"""How good retrieval is. `python -m tests.bench.retrieval_quality [--quick] [--json FILE]`."""

"""The offline replay: walk the test window in order of time, rank, and judge with intervals."""

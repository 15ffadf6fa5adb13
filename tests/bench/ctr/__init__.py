"""Impression logs of public data, and the rankers that ours is compared with on them."""

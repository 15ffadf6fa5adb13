"""Retrieval: a two-tower model whose inner product an index can search."""

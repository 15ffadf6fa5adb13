"""Ranking: probabilities of every action, for all candidates of a request at once."""

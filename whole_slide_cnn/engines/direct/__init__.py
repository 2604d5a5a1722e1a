"""The whole canvas in one graph: the oracle, and the fastest engine where it fits."""

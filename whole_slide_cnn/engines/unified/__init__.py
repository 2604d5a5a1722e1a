"""Whole-slide training over unified memory (2021 paper, Methods): the whole canvas in one graph, ordered by a plan."""

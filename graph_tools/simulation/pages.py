"""How many pages of the device a step holds when nothing moves."""

from typing import Sequence

import numpy as np

from graph_tools.arrays import Array
from graph_tools.graph.lifetimes import Lifetimes
from graph_tools.graph.opgraph import OpGraph
from graph_tools.simulation.machine import Machine


def held_pages(graph: OpGraph, life: Lifetimes, machine: Machine) -> Array:
    """Pages held while each operation runs, in order (int64); tensors smaller than a page count as their peak."""
    named, page = graph.by_name(), machine.page_bytes
    change = np.zeros(len(life.order) + 1, np.int64)
    for storage in life.storages:
        if storage.bytes >= page:
            pages = machine.pages(storage.bytes)
            change[max(storage.made, 0)] += pages
            change[min(storage.last, len(life.order) - 1) + 1] -= pages
    workspaces = [named[name].workspace_bytes for name in life.order]
    own = [machine.pages(size) if size >= page else 0 for size in workspaces]
    small = machine.pages(small_peak_bytes(life, workspaces, page))
    held: Array = np.cumsum(change)[:-1] + np.array(own, np.int64) + small
    return held


def small_peak_bytes(life: Lifetimes, workspaces: Sequence[int], below: int) -> int:
    """The most bytes that storages, and workspaces, smaller than a size hold at once."""
    small = np.zeros(len(workspaces) + 1, np.int64)
    for storage in life.storages:
        if storage.bytes < below:
            small[max(storage.made, 0)] += storage.bytes
            small[min(storage.last, len(workspaces) - 1) + 1] -= storage.bytes
    extra = [size if size < below else 0 for size in workspaces]
    return int((np.cumsum(small)[:-1] + np.array(extra, np.int64)).max(initial=0))

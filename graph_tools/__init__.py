"""Passes over an operation graph: plan an execution under a memory limit, simulate it, then edit the graph.

Planning is pure: an :class:`~graph_tools.graph.opgraph.OpGraph` goes in, a frozen :class:`~graph_tools.plan.Plan` comes
out that can be printed, drawn, simulated, compared and saved. Only ``graph_tools.tensorflow`` imports TensorFlow.
"""

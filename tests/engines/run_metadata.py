"""What TensorFlow recorded of one run: which memory each operation touched, and how much was allocated at once.

Nothing here knows a plan's sizes; only which operations are in a group is taken from it.
"""

from typing import Dict, List, Tuple

import tensorflow.compat.v1 as tf

from graph_tools.tensorflow.verify import trace_options


def traced_step(engine, canvas, label: int) -> tf.RunMetadata:
    """One step of an engine with a graph for whole canvases, with everything recorded."""
    metadata = tf.RunMetadata()
    feed = engine._feed(canvas, label)
    feed[engine._share] = 1.0
    engine._session.run(engine._trained, feed, trace_options(), metadata)
    return metadata


def nodes_of(metadata) -> Dict[str, tf.NodeDef]:
    """Operations after all of TensorFlow's rewriting, by name."""
    return {node.name: node for graph in metadata.partition_graphs for node in graph.node}


def ran(metadata) -> List:
    """Records of the operations that ran, in the order in which they began."""
    devices = [device for device in metadata.step_stats.dev_stats if "/device:" in device.device]
    return sorted((node for device in devices for node in device.node_stats), key=lambda node: node.all_start_nanos)


def allocated_peak(metadata) -> int:
    """The most bytes that were allocated during the step at one time."""
    changes = sorted(
        (change.alloc_micros, change.alloc_bytes)
        for node in ran(metadata)
        for memory in node.memory
        for change in memory.allocation_records
    )
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def touched_bytes(groups, metadata) -> List[int]:
    """Bytes of the distinct pieces of memory that the operations of each group read or wrote.

    An output that lies where an input of its operation lies is the same piece; otherwise it is a new one, also where
    freed memory was used again. Scratch memory is left out: TensorFlow's own CPU kernels reserve as much as the
    processor's cache has, whatever the group.
    """
    nodes, pieces, size = nodes_of(metadata), {}, {}
    for record in ran(metadata):
        if record.node_name in nodes:
            _add_outputs(record, nodes[record.node_name], pieces, size)
    found = []
    for group in groups:
        touched = set()
        for name in group.ops:
            if name in nodes:
                node = nodes[name]
                touched |= {pieces[key] for key in _outputs(name, pieces) + _inputs(node) if key in pieces}
        found.append(sum(size[piece] for piece in touched))
    return found


def _add_outputs(record, node, pieces, size):
    before = {pieces[key] for key in _inputs(node) if key in pieces}
    for output in record.output:
        memory = output.tensor_description.allocation_description
        piece = next((piece for piece in before if piece[0] == memory.ptr), None)
        if node.op == "ReadVariableOp":
            piece = ("variable", node.input[0])  # its memory has no address here
        elif piece is None:
            piece = (memory.ptr, record.node_name)
        pieces[record.node_name, output.slot] = piece
        size[piece] = max(size.get(piece, 0), memory.allocated_bytes or memory.requested_bytes)


def _outputs(name: str, pieces) -> List[Tuple[str, int]]:
    found = []
    while (name, len(found)) in pieces:
        found.append((name, len(found)))
    return found


def _inputs(node) -> List[Tuple[str, int]]:
    found = []
    for text in node.input:
        if not text.startswith("^"):
            name, _, slot = text.partition(":")
            found.append((name, int(slot or 0)))
    return found

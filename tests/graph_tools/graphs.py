"""Graphs that tests of graph_tools share, and ways to compute on them that are slow and plainly right."""

from hypothesis import strategies as st

from graph_tools.graph.opgraph import Op, OpGraph, Output, TensorRef


def chain(*sizes, **options):
    """Operations in a row, each reading the one before, with one output of so many bytes."""
    ops = []
    for index, size in enumerate(sizes):
        inputs = (TensorRef(ops[-1].name, 0),) if ops else ()
        ops.append(Op("op{}".format(index), "Relu", inputs, (Output(size),), **options))
    return OpGraph(tuple(ops))


def net(layers, size=40, flops=100, pure=True):
    """Layers forward, then backward: each backward operation reads the map that its layer read."""
    ops = [Op("map0", "Placeholder", (), (Output(size),), pure=False)]
    for i in range(1, layers + 1):
        below = (TensorRef("map{}".format(i - 1), 0),)
        ops.append(Op("map{}".format(i), "Conv2D", below, (Output(size),), flops=flops, pure=pure))
    gradient = TensorRef(ops[-1].name, 0)
    for i in reversed(range(layers)):
        name = "grad{}".format(i)
        ops.append(Op(name, "Grad", (gradient, TensorRef("map{}".format(i), 0)), (Output(size),), flops=flops))
        gradient = TensorRef(name, 0)
    return OpGraph(tuple(ops), (gradient,))


@st.composite
def graphs(draw, most_ops=14, largest=40):
    """Random valid graphs: variables, aliases, in-place outputs, workspaces, control inputs, several outputs."""
    ops, refs = [], []
    for index in range(draw(st.integers(1, most_ops))):
        persistent = draw(st.integers(0, 5)) == 0
        count = 0 if persistent or not refs else draw(st.integers(0, 3))
        inputs = tuple(draw(st.sampled_from(refs)) for _ in range(count))
        outputs = tuple(draw(outputs_of(inputs, largest)) for _ in range(draw(st.integers(0, 2))))
        waits = draw(st.lists(st.sampled_from([op.name for op in ops]), max_size=2)) if ops and not persistent else []
        name = "op{}".format(index)
        ops.append(
            Op(
                name,
                draw(st.sampled_from(["Conv2D", "Relu", "Mul"])),
                inputs,
                outputs,
                control_inputs=tuple(dict.fromkeys(waits)),
                workspace_bytes=draw(st.sampled_from([0, 0, 7, largest])),
                flops=draw(st.integers(0, 100)),
                persistent=persistent,
                pure=draw(st.booleans()),
            )
        )
        refs += [TensorRef(name, i) for i in range(len(outputs))]
    order = draw(st.permutations(ops))
    fetches = draw(st.lists(st.sampled_from(refs), max_size=2, unique=True)) if refs else []
    return OpGraph(tuple(order), tuple(fetches))


@st.composite
def outputs_of(draw, inputs, largest):
    """One output, perhaps sharing an input's memory."""
    size, kind = draw(st.integers(0, largest)), draw(st.integers(0, 3)) if inputs else 3
    position = draw(st.integers(0, len(inputs) - 1)) if inputs else 0
    alias = position if kind == 0 else None
    return Output(size, alias=alias, in_place=(position,) if kind == 1 else ())


def runs_in_order(graph, order):
    """Whether every operation of the graph runs once, after all that it needs."""
    done = set()
    for name in order:
        op = graph.by_name()[name]
        if not {ref.op for ref in op.inputs} | set(op.control_inputs) <= done or name in done:
            return False
        done.add(name)
    return len(done) == len(graph.ops)


class PlainMemory:
    """Replays an order tensor by tensor: who holds which memory, by search instead of by bookkeeping.

    Attributes:
        order: names of the operations.
        home: for each tensor the first tensor that held its memory.
        held: for each position the memories held while its operation runs.
        touched: for each position those that it reads or writes.
    """

    def __init__(self, graph, order):
        self._graph, self.order, self._ops = graph, list(order), graph.by_name()
        self.home, self.touched = {}, []
        self.size = {}
        for position, name in enumerate(order):
            op = self._ops[name]
            for index, output in enumerate(op.outputs):
                self.home[TensorRef(name, index)] = self._find(op, index, output, position)
            own = [self.home[TensorRef(name, i)] for i in range(len(op.outputs))]
            self.touched.append({self.home[ref] for ref in op.inputs} | set(own))
        self.held = [self._alive(position) for position in range(len(order))]

    def _find(self, op, index, output, position):
        ref = TensorRef(op.name, index)
        if op.persistent or (output.alias is None and not output.in_place):
            self.size[ref] = output.bytes
            return ref
        if output.alias is not None:
            return self.home[op.inputs[output.alias]]
        for place in output.in_place:
            home = self.home[op.inputs[place]]
            others = [self.home[TensorRef(op.name, i)] for i in range(index)]
            if self.size[home] == output.bytes and home not in others and not self._read_after(home, position):
                return home
        self.size[ref] = output.bytes
        return ref

    def _read_after(self, home, position):
        members = {ref for ref, other in self.home.items() if other == home}
        later = {ref for name in self.order[position + 1 :] for ref in self._ops[name].inputs}
        return self._ops[home.op].persistent or bool(members & later) or bool(members & set(self._graph.fetches))

    def _alive(self, position):
        alive = set()
        for home in self.size:
            members = {ref for ref, other in self.home.items() if other == home}
            made = -1 if self._ops[home.op].persistent else self.order.index(home.op)
            uses = [p for p, touched in enumerate(self.touched) if home in touched]
            kept = made < 0 or members & set(self._graph.fetches)
            if made <= position and (kept or max(uses) >= position):
                alive.add(home)
        return alive


def plain_group_bytes(graph, memory, start, end):
    """Bytes that the operations from one position to another touch, each memory once, and their largest workspace."""
    touched = set().union(*memory.touched[start:end])
    ops = graph.by_name()
    workspace = max(ops[name].workspace_bytes for name in memory.order[start:end])
    return sum(memory.size[home] for home in touched) + workspace

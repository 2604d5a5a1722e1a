import pytest

from graph_tools.errors import GraphToolsError
from graph_tools.graph.costs import Cost, cost_of
from graph_tools.units import parse_bytes, readable

IMAGE, KERNEL, MAP = (2, 10, 12, 3), (5, 5, 3, 8), (2, 10, 12, 8)
PRODUCTS = 2 * 10 * 12 * 8 * 5 * 5 * 3
PATCHES = 2 * 10 * 12 * 5 * 5 * 3 * 4


@pytest.mark.parametrize(
    "op_type, inputs, output",
    [
        ("Conv2D", (IMAGE, KERNEL), MAP),
        ("Conv2DBackpropInput", ((4,), KERNEL, MAP), IMAGE),
        ("Conv2DBackpropFilter", (IMAGE, (4,), MAP), KERNEL),
    ],
)
def test_a_convolution_and_its_gradients(op_type, inputs, output):
    assert cost_of(op_type, inputs, [output], 4) == Cost(2 * PRODUCTS)
    assert cost_of(op_type, inputs, [output], 4, workspace_limit=10**9) == Cost(2 * PRODUCTS, PATCHES)
    assert cost_of(op_type, inputs, [output], 4, workspace_limit=1000) == Cost(2 * PRODUCTS, 1000)
    assert cost_of(op_type, inputs, [output], 2, workspace_limit=10**9).workspace_bytes == PATCHES // 2


def test_a_filter_of_one_pixel_needs_no_patches():
    cost = cost_of("Conv2D", ((1, 4, 4, 3), (1, 1, 3, 8)), [(1, 4, 4, 8)], 4, workspace_limit=10**9)
    assert cost == Cost(2 * 16 * 8 * 3)


@pytest.mark.parametrize(
    "op_type, inputs, output, options, cost",
    [
        ("MatMul", ((2, 7), (7, 5)), (2, 5), {}, Cost(2 * 2 * 5 * 7)),
        ("MatMul", ((7, 2), (7, 5)), (2, 5), {"transposed": True}, Cost(2 * 2 * 5 * 7)),
        ("BatchMatMulV2", ((3, 2, 7), (3, 7, 5)), (3, 2, 5), {}, Cost(2 * 3 * 2 * 5 * 7)),
        ("DepthwiseConv2dNative", (IMAGE, (3, 3, 3, 2)), (2, 10, 12, 6), {}, Cost(2 * 2 * 10 * 12 * 6 * 9)),
        ("MaxPool", (IMAGE,), (2, 5, 6, 3), {"window": (1, 2, 2, 1)}, Cost(2 * 5 * 6 * 3 * 4)),
        ("MaxPoolGrad", (IMAGE, (2, 5, 6, 3)), IMAGE, {"window": (1, 2, 2, 1)}, Cost(720, 180 * 12)),
        ("Relu", (IMAGE,), IMAGE, {}, Cost(720)),
    ],
)
def test_other_operations(op_type, inputs, output, options, cost):
    assert cost_of(op_type, inputs, [output], 4, **options) == cost


def test_an_operation_without_outputs_costs_nothing():
    assert cost_of("NoOp", [], [], 0) == Cost(0)


def test_sizes_are_read_and_written_as_people_do():
    given = ("32GB", "1.5 MiB", "1000", "7kB", "2TB", "1 KiB")
    assert [parse_bytes(text) for text in given] == [32 * 10**9, 3 * 2**19, 1000, 7000, 2 * 10**12, 1024]
    assert [readable(size) for size in (0, 999, 1000, 12.34e9, 5e12)] == ["0 B", "999 B", "1 kB", "12.3 GB", "5 TB"]
    for text in ("", "GB", "0", "-1GB", "1XB", "1.2.3"):
        with pytest.raises(GraphToolsError, match="is not a size in bytes"):
            parse_bytes(text)
    assert [parse_bytes(text, least=0) for text in ("0", "0 GB", "1kB")] == [0, 0, 1000]
    with pytest.raises(GraphToolsError, match="is not a size in bytes"):
        parse_bytes("much", least=0)

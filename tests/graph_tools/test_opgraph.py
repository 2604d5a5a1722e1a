import pytest
from graphs import chain, graphs, runs_in_order
from hypothesis import given, settings

from graph_tools.errors import CycleError, DanglingInputError, FileError, UnknownSizeError
from graph_tools.graph.opgraph import Op, OpGraph, Output, TensorRef, stable_order
from graph_tools.serial import from_json, to_json


def op(name, *inputs, **options):
    return Op(name, "Relu", tuple(TensorRef(other, 0) for other in inputs), (Output(4),), **options)


def test_a_cycle_is_named_without_what_only_leads_to_it():
    ops = (op("free"), op("a", "c", "free"), op("b", "a"), op("c", "b"), op("after", "c"))
    with pytest.raises(CycleError, match="circle: a, b, c;|circle: b, c, a;|circle: c, a, b;"):
        OpGraph(ops)


def test_control_inputs_make_cycles_too_and_long_cycles_are_cut_short():
    names = ["n{}".format(index) for index in range(20)]
    ops = tuple(op(name, control_inputs=(names[index - 1],)) for index, name in enumerate(names))
    with pytest.raises(CycleError, match="and 14 more"):
        OpGraph(ops)


@pytest.mark.parametrize(
    "ops, fetches, said",
    [
        ((op("a", "gone"),), (), "a reads tensor gone:0"),
        ((op("a", control_inputs=("gone",)),), (), "a waits for gone"),
        ((op("a"),), (TensorRef("a", 1),), "fetches name tensor a:1"),
        ((op("a"), op("b"), op("a")), (), "two operations are called a"),
        ((Op("a", "Relu", (), (Output(4, alias=0),)),), (), "memory of input 0"),
        ((op("a"), Op("b", "Relu", (TensorRef("a", 0),), (Output(4, in_place=(1,)),))), (), "memory of input 1"),
    ],
)
def test_what_the_graph_does_not_have_is_named(ops, fetches, said):
    with pytest.raises(DanglingInputError, match=said):
        OpGraph(ops, fetches)


@pytest.mark.parametrize("size", [None, -1])
def test_an_unknown_size_is_named(size):
    with pytest.raises(UnknownSizeError, match="tensor a:1"):
        OpGraph((Op("a", "Unique", (), (Output(4), Output(size))),))


def test_stable_order_prefers_the_position_in_the_graph():
    ops = (op("z"), op("late", "b"), op("a"), op("b"), op("c"))
    assert stable_order(OpGraph(ops)) == ("z", "a", "b", "late", "c")


@settings(deadline=None, max_examples=40)
@given(graphs())
def test_stable_order_runs_and_json_gives_the_graph_back(graph):
    assert runs_in_order(graph, stable_order(graph))
    assert from_json(OpGraph, to_json(graph)) == graph


def test_json_of_something_else_is_refused():
    text = to_json(chain(1, 2))
    for broken in (text[:-1], text.replace('"ops"', '"nodes"'), text.replace('"bytes":1', '"bytes":"1"'), "[]", "{}"):
        with pytest.raises(FileError, match="not the JSON of a OpGraph"):
            from_json(OpGraph, broken)

"""The operations in a graph, on a CPU; and what is said where they cannot be had."""

import ctypes
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow
import tensorflow.compat.v1 as tf

from tf_um_patch import ops as um
from tf_um_patch.build import SOURCES, Compiler, build_operations, built_for
from tf_um_patch.errors import BuildError, OptionError, UnifiedMemoryError


@pytest.fixture(scope="module")
def operations(compilers):
    """The operations, compiled for this TensorFlow in this session."""
    loaded = um.load_ops()
    assert loaded.available, getattr(loaded, "reason", "")
    return loaded


@pytest.fixture
def graph(operations):
    """A graph to build in, with all counters at 0."""
    operations.reset_counters()
    with tf.Graph().as_default() as graph:
        yield graph


def executions(operations):
    return [operations.counters()[verb + "_calls"] for verb in ("prefetch", "evict", "advise")]


def test_they_run_and_count_once_per_step(operations, graph):
    x = tf.placeholder(tf.float32, [None, 4])
    y = tf.square(x)
    moved = operations.evict(y)
    advised = operations.advise(y, "prefer_host", after=[moved])
    back = operations.prefetch(y, after=[advised])
    with tf.control_dependencies([back]):
        result = tf.reduce_sum(y + 1)
    with tf.Session() as session:
        for rows in (1, 3):
            assert session.run(result, {x: np.ones([rows, 4])}) == rows * 8
    found = operations.counters()
    assert executions(operations) == [2, 2, 2]
    assert found["prefetch_bytes"] == found["evict_bytes"] == found["advise_bytes"] == 4 * 4 * (1 + 3)
    assert found["enqueued"] == found["failed"] == found["not_managed"] == found["no_driver"] == 0


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64", "uint8"])
def test_a_tensor_goes_to_a_file_and_comes_back(operations, graph, tmp_path, kind):
    values = np.arange(24).reshape(2, 3, 4)
    tensor = tf.cast(tf.constant(values), kind)
    handle = operations.evict_to_file(tensor, str(tmp_path))
    back = operations.restore(handle, tensor)
    assert back.dtype == tensor.dtype and back.shape == tensor.shape
    with tf.Session() as session:
        for _ in range(2):
            found, _ = session.run([tf.cast(back, tf.float64), handle])
            np.testing.assert_array_equal(found, values)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(operations, graph, tmp_path):
    handle = operations.evict_to_file(tf.ones([3]), str(tmp_path / "none"))
    with tf.Session() as session, pytest.raises(tf.errors.ResourceExhaustedError, match="none .No such file"):
        session.run(handle)


def test_counters_can_be_reset(operations, graph):
    with tf.Session() as session:
        session.run(operations.prefetch(tf.ones([3])))
    assert executions(operations) == [1, 0, 0]
    operations.reset_counters()
    assert set(operations.counters().values()) == {0}


def test_optimisers_neither_drop_nor_merge_nor_precompute_them(operations, graph):
    constant = tf.constant(np.ones([100], np.float32)) * 2
    twins = [operations.prefetch(constant), operations.prefetch(constant)]
    with tf.control_dependencies(twins):
        result = tf.identity(constant) + 1
    with tf.Session() as session:
        for _ in range(3):
            session.run(result)
    assert executions(operations) == [6, 0, 0]


def test_without_a_control_edge_from_them_they_do_not_run(operations, graph):
    x = tf.ones([5])
    operations.prefetch(x)
    with tf.Session() as session:
        session.run(x + 1)
    assert executions(operations) == [0, 0, 0]


def test_after_orders_them(operations, graph):
    order = []

    def note(name):
        return tf.py_func(lambda: order.append((name, executions(operations))), [], [], stateful=True)

    x = tf.ones([5])
    first = note("first")
    moved = operations.prefetch(x, after=[first])
    with tf.control_dependencies([moved]):
        second = note("second")
    gone = operations.evict(x, after=[second])
    with tf.control_dependencies([gone]):
        third = note("third")
    with tf.Session() as session:
        session.run(third)
    assert order == [("first", [0, 0, 0]), ("second", [1, 0, 0]), ("third", [1, 1, 0])]


def test_they_sit_with_their_tensor_and_take_only_the_edges_they_are_given(operations, graph):
    with tf.device("/cpu:0"):
        x = tf.ones([5], name="x")
    before, around = tf.no_op(), tf.no_op(name="around")
    with tf.device("/gpu:0"), graph.colocate_with(around), graph.control_dependencies([around]):
        moved = operations.prefetch(x, after=[before], name="moved")
    with tf.Graph().as_default():
        assert operations.evict(x).graph is graph
    assert moved.name == "moved"
    assert moved.control_inputs == [before]
    assert moved.colocation_groups() == [b"loc:@x"]
    assert "gpu" not in moved.device.lower()


@pytest.mark.parametrize("value", [np.int64([1, 2]), np.float64(3.0), np.zeros([0, 7]), np.array([b"text"]), [True]])
def test_tensors_of_any_type_and_shape(operations, graph, value):
    with tf.Session() as session:
        session.run(operations.evict(tf.constant(value)))
    assert executions(operations) == [0, 1, 0]


def test_variables(operations, graph):
    variable = tf.get_variable("v", [256], tf.float32)
    moved = operations.prefetch(variable.value())
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run(moved)
    assert operations.counters()["prefetch_bytes"] == 1024


def test_a_saved_graph_keeps_them(operations, graph):
    with tf.control_dependencies([operations.advise(tf.ones([5]), "read_mostly")]):
        tf.no_op(name="done")
    definition = graph.as_graph_def()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(definition, name="")
        session.run("done")
    assert executions(operations) == [0, 0, 1]


def test_an_unknown_advice_is_refused(operations, graph):
    with pytest.raises(OptionError, match="no advice 'faster': use one of map_on_device, .*read_mostly"):
        operations.advise(tf.ones([5]), "faster")
    assert "UmAdvise" not in {operation.type for operation in graph.get_operations()}


def test_loading_again_gives_the_same(operations):
    assert um.load_ops() is operations and um.load_ops(operations.library) is operations


def test_the_second_build_compiles_nothing(operations, monkeypatch):
    monkeypatch.setattr("tf_um_patch.build._run", lambda *arguments: pytest.fail("compiled again"))
    assert build_operations(tensorflow) == operations.library


def test_without_a_compiler_it_is_said_what_is_lost(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    lacking = um.load_ops()
    assert lacking.available is False
    assert lacking.reason.startswith("no C++ compiler is found, so the operations cannot be built: install one with: ")
    assert "not moved ahead of their use" in lacking.reason
    with tf.Graph().as_default():
        for call in (lacking.prefetch, lacking.evict):
            with pytest.raises(UnifiedMemoryError, match="no C"):
                call(tf.ones([1]))


def test_a_compiler_that_fails_is_quoted(monkeypatch, compilers):
    failing = Compiler(("g++", "--no-such-option"), "a compiler that fails")
    monkeypatch.setattr("tf_um_patch.build.find_compiler", lambda language: failing)
    assert re.match("g.. fails with: .*--no-such-option.*; use another compiler by CC or CXX", um.load_ops().reason)


def test_a_library_for_another_tensorflow_is_refused(operations, tmp_path):
    with open(operations.library, "rb") as stream:
        content = stream.read()
    own = built_for(tensorflow)
    other = own[:-1] + {"0": "1", "1": "0"}[own[-1]]  # the other C++ ABI
    path = tmp_path / "other.so"
    path.write_bytes(content.replace(own.encode(), other.encode()))
    with pytest.raises(BuildError, match=re.escape("was built for {}, not for {}: delete it".format(other, own))):
        um.load_ops(str(path))


def test_a_second_library_is_refused(operations, tmp_path):
    path = str(tmp_path / "copy.so")
    shutil.copy(operations.library, path)
    with pytest.raises(BuildError, match="copy.so cannot be loaded beside .*: start another process for it"):
        um.load_ops(path)


def test_a_library_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(um, "_LOADED", {})
    path = tmp_path / "broken.so"
    path.write_bytes(b"tfum operations for " + built_for(tensorflow).encode() + b"\0")
    with pytest.raises(BuildError, match="broken.so cannot be loaded .*: delete it, and it is built anew"):
        um.load_ops(str(path))


@pytest.mark.parametrize(
    "content, sentence", [(b"\x7fELF of something else", "is no library of operations"), (None, "be read")]
)
def test_what_is_no_library_of_operations_is_refused(tmp_path, content, sentence):
    path = tmp_path / "other.so"
    if content:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=sentence):
        um.load_ops(str(path))


def test_moves_without_a_driver_or_on_plain_memory_do_nothing(compilers, tmp_path):
    path = str(tmp_path / "migrate.so")
    source = os.path.join(SOURCES, "operations", "migrate.c")
    subprocess.run(["gcc", "-std=c11", "-fPIC", "-shared", "-o", path, source, "-ldl", "-lpthread"], check=True)
    library = ctypes.CDLL(path)
    library.tfum_counter.restype = ctypes.c_uint64
    library.tfum_counter_name.restype = ctypes.c_char_p
    buffer = ctypes.create_string_buffer(64)
    library.tfum_move(0, ctypes.c_uint64(ctypes.addressof(buffer)), ctypes.c_uint64(64), 0, 0, None)
    found = {library.tfum_counter_name(i): library.tfum_counter(i) for i in range(10)}
    assert found[b"no_driver"] + found[b"not_managed"] == 1
    assert found[b"enqueued"] == found[b"failed"] == 0


def test_tensorflow_calls_the_driver_through_the_shim(shim, tmp_path):
    """The dynamic linker's own word: TensorFlow's library is bound to the shim, before TensorFlow's stubs."""
    folder = os.path.dirname(tensorflow.sysconfig.get_link_flags()[0][2:] + "/")
    (name,) = [flag[3:] for flag in tensorflow.sysconfig.get_link_flags() if flag.startswith("-l:")]
    environment = dict(os.environ, LD_PRELOAD=shim, LD_DEBUG="bindings", LD_BIND_NOW="1")
    environment["LD_DEBUG_OUTPUT"] = str(tmp_path / "bindings")
    program = "import ctypes; ctypes.CDLL({!r})".format(os.path.join(folder, name))
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    bound = set()
    for path in tmp_path.iterdir():
        with open(str(path), encoding="utf-8", errors="replace") as stream:
            bound |= {line.split("`")[1].split("'")[0] for line in stream if name in line and "libtfum.so" in line}
    assert {"cuMemAlloc_v2", "cuMemFree_v2", "cuMemGetInfo_v2", "cuMemAllocManaged", "dlsym"} <= bound

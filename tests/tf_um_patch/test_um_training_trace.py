"""The allocations of a real training step, as TensorFlow recorded them, replayed against the shim."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

MIB = 1 << 20


def train_step():
    """The recorded step of a small residual network: a list of (microseconds, address, bytes), bytes < 0 where freed.

    TensorFlow records both for every allocation of a traced step, but not the address, so each allocation gets a made
    up one. What lives on after the step, such as variables, is never freed in it.
    """
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [2, 96, 96, 3])
        with tf.variable_scope("net"):
            y = x
            for depth, features in enumerate([16, 16, 24, 24, 32, 32]):
                kernel = tf.get_variable("kernel{}".format(depth), [3, 3, int(y.shape[-1]), features])
                y = tf.nn.relu(tf.nn.conv2d(y, kernel, 1 + depth % 2, "SAME"))
            dense = tf.get_variable("dense", [32, 2])
        logits = tf.matmul(tf.reduce_max(y, axis=[1, 2]), dense)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[0, 1], logits=logits))
        update = tf.train.AdamOptimizer(1e-3).minimize(loss)
        metadata = tf.RunMetadata()
        traced = tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            session.run([update, loss], {x: np.ones([2, 96, 96, 3])}, options=traced, run_metadata=metadata)
    events = []
    for device in metadata.step_stats.dev_stats:
        for node in device.node_stats:
            for memory in node.memory:
                events += paired(memory.allocation_records, len(events))
    return sorted(events, key=lambda event: (event[0], event[2] < 0))  # at the same microsecond allocations come first


def paired(records, first):
    """Events of one node: a release belongs to the oldest allocation of its size that is still there."""
    events, live = [], []
    for record in sorted(records, key=lambda record: (record.alloc_micros, -record.alloc_bytes)):
        size = abs(record.alloc_bytes)
        if record.alloc_bytes > 0:
            live.append((size, first + len(events) + 1))
            events.append((record.alloc_micros, live[-1][1], size))
        elif record.alloc_bytes < 0:
            (address,) = [address for alive, address in live if alive == size][:1]
            live.remove((size, address))
            events.append((record.alloc_micros, address, -size))
    return events


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """(path of a trace in the shim's form, number of allocations, peak of their bytes)."""
    events = train_step()
    path = str(tmp_path_factory.mktemp("trace") / "step.trace")
    used = peak = allocations = 0
    with open(path, "w", encoding="ascii") as stream:
        for microseconds, address, size in events:
            name = "alloc" if size > 0 else "free"
            stream.write("{} {} {:#x} {} device 0\n".format(microseconds * 1000, name, address, abs(size)))
            used += size
            peak = max(peak, used)
            allocations += size > 0
    assert allocations > 30 and peak > 2 * MIB and 2 * used < peak
    return path, allocations, peak


def replay(native, path, report, **variables):
    return native.run("stress", "replay", path, TFUM_REPORT=report, TFUM_THRESHOLD=4096, **variables)


def test_replay_under_a_ceiling_of_just_its_peak(native, trace, tmp_path, read_report):
    path, allocations, peak = trace
    own, again = str(tmp_path / "own.trace"), str(tmp_path / "again")
    done = replay(native, path, str(tmp_path / "report"), TFUM_CEILING=peak, TFUM_TRACE=own)
    assert done.returncode == 0, done.stderr
    found = read_report(tmp_path / "report")
    assert found["managed_allocations"] + found["device_allocations"] == allocations
    assert found["managed_allocations"] > 20 and found["device_allocations"] > 20
    assert found["peak_bytes"] == peak
    assert found["used_bytes"] == found["managed_bytes"] + found["device_bytes"]
    # What the shim recorded itself is the same history.
    done = replay(native, own, again, TFUM_CEILING=peak)
    assert done.returncode == 0, done.stderr
    assert read_report(again) == found


def test_a_byte_less_is_refused(native, trace, tmp_path, read_report):
    path, _, peak = trace
    done = replay(native, path, str(tmp_path / "report"), TFUM_CEILING=peak - 1)
    assert done.returncode == 1
    # The program ends at once, without its report.
    assert "cuMemAlloc_v2" in done.stderr and not os.path.exists(str(tmp_path / "report"))

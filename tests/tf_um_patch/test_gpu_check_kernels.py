"""The kernels of the checks on a GPU, as text that nobody may have run: here they are run, and assembled."""

import os
import struct
import subprocess

import ptx
import pytest

from tf_um_patch.gpu_check import kernels

SOURCE = kernels.PTX.decode("ascii")


def words(memory):
    return list(struct.unpack("<{}I".format(len(memory) // 4), memory))


@pytest.mark.parametrize("rounds", [1, 2, 37, 1000])
def test_spin_leaves_what_is_expected_of_it(rounds):
    memory = bytearray(b"\xff" * 4 * 10)
    ptx.run(SOURCE, "tfum_spin", 2, 4, [4, rounds], memory)
    assert words(memory) == [2**32 - 1] + kernels.spun(8, rounds) + [2**32 - 1]


def test_what_is_expected_of_spin_is_what_its_steps_give():
    expected = list(range(5))
    for rounds in range(1, 40):
        expected = [(value * kernels.FACTOR + kernels.ADDEND) % 2**32 for value in expected]
        assert kernels.spun(5, rounds) == expected


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 25])  # with 6 threads: none, some, all and many words for each
def test_add_reaches_every_word_once_and_no_other(count):
    before = [7 * index for index in range(count)] + [123, 2**32 - 1]
    memory = bytearray(struct.pack("<{}I".format(count + 2), *before))
    ptx.run(SOURCE, "tfum_add", 2, 3, [0, count, 2**32 - 3], memory)
    assert words(memory) == [(value - 3) % 2**32 for value in before[:count]] + before[count:]


def test_they_are_for_every_gpu_that_pages():
    assert SOURCE.split("\n")[1:4] == [".version 6.0", ".target sm_60", ".address_size 64"]


@pytest.mark.parametrize("target", ["sm_75", "sm_90"])
def test_they_assemble(tmp_path, target):
    path = tmp_path / "kernels.ptx"
    path.write_bytes(kernels.PTX)
    try:
        done = subprocess.run(["ptxas", "-arch=" + target, "-o", os.devnull, str(path)], stderr=subprocess.PIPE)
    except FileNotFoundError:
        pytest.skip("there is no ptxas, which comes with CUDA's toolkit")
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    "old, new",
    [
        ("1664525", "1664524"),
        ("sub.u32 %left, %left, 1", "sub.u32 %left, %left, 2"),
        ("mul.wide.u32 %offset, %thread, 4", "mul.wide.u32 %offset, %lane, 4"),
        ("setp.ge.u64 %done", "setp.ne.u64 %done"),
        ("add.u64 %index, %index, %stride", "add.u64 %index, %index, %offset"),
        ("shl.b64 %offset, %index, 2", "shl.b64 %offset, %index, 1"),
    ],
)
def test_a_mistake_in_them_would_be_found(old, new):
    assert SOURCE.count(old) == 1
    wrong, threads = SOURCE.replace(old, new), 6
    memory, sums = bytearray(4 * threads), bytearray(4 * 25)
    try:
        ptx.run(wrong, "tfum_spin", 2, 3, [0, 37], memory)
        ptx.run(wrong, "tfum_add", 2, 3, [0, 25, 1], sums)
    except (AssertionError, struct.error):
        return
    assert words(memory) != kernels.spun(threads, 37) or words(sums) != [1] * 25

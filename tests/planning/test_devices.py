"""The table of GPUs, and recognising one of them."""

import pytest

from tf_um_patch.host import GpuInfo
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.planning import devices


@pytest.mark.parametrize(
    "line, name",
    [
        ("Tesla V100-SXM2-32GB, 32510", "V100-32GB"),
        ("Tesla V100-SXM2-16GB, 16160", "V100-16GB"),
        ("Tesla T4, 15360", "T4"),
        ("NVIDIA A100-SXM4-80GB, 81920", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB, 40960", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3, 81559", "H100-80GB"),
        ("NVIDIA H200, 143771", "H200"),
        ("NVIDIA GeForce RTX 3090, 24576", "RTX-3090"),
        ("NVIDIA RTX A6000, 49140", "RTX-A6000"),
        ("NVIDIA L40S, 46068", "L40S"),
        ("NVIDIA L4, 23034", "L4"),
        ("NVIDIA GeForce RTX 3060, 12288", None),  # not in the table
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb, 9728", None),  # a part of one
        ("nonsense, 16384", None),
    ],
)
def test_a_gpu_is_recognised_by_its_name_and_memory(line, name):
    words, mebibytes = line.rsplit(", ", 1)
    assert devices.match_gpu(GpuInfo(words, int(mebibytes) * 2**20, 0)) == name


def test_names_of_the_table():
    assert devices.gpu_named("v100-32gb") is devices.GPUS["V100-32GB"]
    with pytest.raises(ConfigError, match="unknown device 'V101' .known: .*V100-32GB.*; name one that is like yours"):
        devices.gpu_named("V101")


def test_a_machine_has_less_than_the_data_sheet_says():
    gpu = devices.GPUS["V100-32GB"]
    machine = devices.machine_of(gpu, 768 * 10**9)
    assert 31e9 < machine.device_bytes < 32 * 2**30 and machine.host_bytes == 691200000000
    assert machine.copy_rate == 10.3e9 and machine.on_demand_rate == 3.6e9  # as the paper measured them
    assert machine.float32_flops < 15.7e12 and machine.half_flops < 125e12 and machine.memory_rate < 900e9
    assert devices.machine_of(devices.GPUS["H100-80GB"], 10**12).copy_rate == 4 * machine.copy_rate


def test_rates_of_types_that_a_gpu_computes_slowly_or_not_at_all():
    v100, rtx = devices.GPUS["V100-32GB"], devices.GPUS["RTX-4090"]
    single = devices.machine_of(v100, 10**11)
    assert devices.machine_of(v100, 10**11, "float64").float32_flops == single.float32_flops / 2
    assert devices.machine_of(v100, 10**11, "bfloat16").half_flops == single.float32_flops
    assert devices.machine_of(v100, 10**11, "float16").half_flops == single.half_flops
    assert devices.machine_of(rtx, 10**11, "bfloat16").half_flops == devices.machine_of(rtx, 10**11).half_flops
    a100 = devices.GPUS["A100-80GB"]
    rounded = devices.machine_of(a100, 10**11, "tensorfloat32")
    assert rounded.float32_flops == rounded.half_flops / 2 > 2 * devices.machine_of(a100, 10**11).float32_flops
    assert devices.machine_of(v100, 10**11, "tensorfloat32") == single
    assert devices.machine_of(rtx, 10**11, "tensorfloat32") == devices.machine_of(rtx, 10**11)  # no faster there


def test_capacity_is_known_of_every_card_and_rates_of_those_in_the_table():
    known = devices.target_of_card(GpuInfo("Tesla V100-SXM2-32GB", 32510 * 2**20, 30000 * 2**20), 10**11)
    assert known.rates_known and known.name == "V100-32GB" and known.gpu
    assert known.machine.device_bytes == 30000 * 2**20 - devices.CONTEXT_BYTES
    piece = GpuInfo("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728 * 2**20, 9728 * 2**20)
    unknown = devices.target_of_card(piece, 10**11)
    assert not unknown.rates_known and unknown.name == piece.name and unknown.gpu
    assert unknown.machine.device_bytes == 9728 * 2**20 - devices.CONTEXT_BYTES
    assert unknown.machine.host_bytes == known.machine.host_bytes == 9 * 10**10

"""What the planner predicts: how it depends on canvas, memory, precision and tissue, and what it recommends."""

from dataclasses import replace

import numpy as np
import pytest

from whole_slide_cnn.engines import ENGINES
from whole_slide_cnn.engines.streaming import StreamingEngine
from whole_slide_cnn.engines.unified import UnifiedOptions
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.planning.devices import GPUS, machine_of
from whole_slide_cnn.planning.estimate import HALF, VARIANTS, Target, Work, estimate, streaming_windows
from whole_slide_cnn.planning.rates import host_machine
from whole_slide_cnn.planning.recommend import label, readable_seconds, recommend, sentence, settings, table
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

NETWORK = Network("tiny", "gmp", "softmax", 2)
V100 = machine_of(GPUS["V100-32GB"], 768 * 10**9)
WORK = Work(NETWORK, Size(2048, 2048), unified=UnifiedOptions(strip_mb=16, group_mb=100))


def on(**changed):
    return Target("a GPU", replace(V100, **changed), True)


def by_label(found):
    return {(label(item), item.compute): item for item in found}


def test_every_engine_is_estimated():
    found = estimate(WORK, on())
    assert {item.engine for item in found} == set(ENGINES)
    assert len(found) == 2 + 2 * len(VARIANTS)  # unified in float32 and in half precision
    assert all(item.fits and item.seconds > 0 and item.device_bytes > 0 for item in found)
    assert recommend(WORK, found).estimate.engine == "direct"  # all of it fits


def test_memory_and_time_of_direct_grow_with_the_area_and_streaming_stays():
    small, large = (
        {
            item.engine: item
            for item in estimate(replace(WORK, canvas=Size(s, s)), on(), engines=("direct", "streaming"))
        }
        for s in (4096, 8192)
    )
    assert large["direct"].device_bytes == pytest.approx(4 * small["direct"].device_bytes, rel=0.02)
    assert large["direct"].seconds == pytest.approx(4 * small["direct"].seconds, rel=0.1)
    assert large["streaming"].device_bytes == pytest.approx(small["streaming"].device_bytes, rel=0.02)
    assert 3.5 < large["streaming"].seconds / small["streaming"].seconds < 4.5


def test_paging_costs_time_and_each_step_of_the_schedule_wins_some():
    whole = by_label(estimate(WORK, on(), engines=("unified",)))
    needed = whole["unified + plain", "float32"].device_bytes
    tight = by_label(estimate(WORK, on(device_bytes=int(0.4 * needed), page_bytes=2**16), engines=("unified",)))
    seconds = [tight["unified + " + name, "float32"].seconds for name, _ in VARIANTS]
    assert seconds == sorted(seconds, reverse=True) and seconds[2] < 0.9 * seconds[0]
    assert tight["unified + plain", "float32"].seconds > 1.5 * whole["unified + plain", "float32"].seconds
    assert tight["unified + plain", HALF].host_bytes < tight["unified + plain", "float32"].host_bytes
    assert tight["unified + plain", "float32"].device_bytes <= 0.4 * needed


def test_what_cannot_fit_says_why():
    found = by_label(estimate(WORK, on(device_bytes=60 * 10**6, host_bytes=10**6), halves=False))
    assert "device memory and there are 0.1; use streaming" in found["direct", "float32"].reason
    assert found["streaming", "float32"].reason.endswith("use a smaller streaming.window")
    assert "the host has 1 MB" in found["unified + plain", "float32"].reason
    best = recommend(WORK, list(found.values()))
    assert best.estimate is None and best.reason.startswith("nothing fits: direct does not fit (")
    assert best.reason in table(WORK, on(), list(found.values()))
    weightless = estimate(WORK, on(device_bytes=10**6), halves=False, engines=("unified",))
    assert "device memory for weights alone" in weightless[0].reason


def test_tensors_past_the_limit_are_planned_and_refused():
    work = replace(WORK, network=Network("fixup_resnet50", "gmp", "softmax", 2), canvas=Size(12000, 12000))
    direct, streaming = estimate(work, on(device_bytes=10**13), engines=("direct", "streaming"))
    assert "2^31" in direct.reason and direct.device_bytes > 200e9 and direct.seconds > 0
    best = recommend(work, [direct, streaming])
    assert best.estimate is streaming and "direct does not fit (tensor " in best.reason


def test_without_a_gpu_all_memory_is_the_hosts():
    target = Target("this machine", host_machine(10**10), False)
    found = estimate(WORK, target)
    assert [item.engine for item in found] == ["direct", "streaming", "unified"]
    assert all(item.device_bytes == 0 and 10**7 < item.host_bytes < 10**10 for item in found)
    refused = estimate(WORK, Target("this machine", host_machine(10**8), False))
    assert all("of host memory" in item.reason for item in refused)
    slower = estimate(WORK, replace(target, time_scale=2.0))
    assert [item.seconds for item in slower] == [2 * item.seconds for item in found]


@pytest.mark.parametrize("tissue", [0.05, 0.3, 1.0])
def test_windows_are_those_that_the_engine_computes(tissue):
    work = replace(WORK, canvas=Size(1024, 1536), window=256, tissue=tissue)
    sizes, blank, _ = streaming_windows(work)
    pixels = np.full(work.canvas + (3,), 255, np.uint8)
    height, width = (int(round(side * tissue**0.5 / 32)) * 32 for side in work.canvas)
    top, left = ((side // 32 - inner // 32) // 2 * 32 for side, inner in zip(work.canvas, (height, width)))
    pixels[top : top + height, left : left + width] = 100
    with StreamingEngine(NETWORK, work.canvas, window=256) as engine:
        cover = engine.cover(ArrayCanvas(pixels))
        assert len(cover.windows) == sum(sizes.values())
        assert blank == engine._blank.size
    areas = [size.height * size.width * count for size, count in sizes.items()]
    assert sum(areas) > tissue * 1024 * 1536


def test_less_tissue_takes_less_time_and_average_pooling_more():
    def seconds(**changed):
        return estimate(replace(WORK, **changed), on(), engines=("streaming",))[0].seconds

    assert seconds(tissue=0.1) < 0.5 * seconds(tissue=1.0)
    assert seconds(training=False) < 0.5 * seconds()
    with pytest.raises(ConfigError, match="a tissue share of 1.5 is none"):
        replace(WORK, tissue=1.5)


def test_what_a_user_reads():
    found = estimate(WORK, on(), halves=False)
    text = table(WORK, on(), found)
    assert "canvas 2048 x 2048 px, tiny, float32, training; 100 % tissue" in text
    assert text.count("\n") >= len(found) + 5 and "recommended: direct (the fastest that fits; " in text
    assert "  engine: direct" in text
    assert settings(WORK, on(), found[-1]) == ("engine: unified", "unified: {strip_mb: 16, group_mb: 16414}")
    assert sentence(found[0], on()).startswith("plan for a GPU: device memory ")
    assert [readable_seconds(value) for value in (0.5, 119, 600, 9000)] == ["0.5 s", "119 s", "10.0 min", "2.5 h"]

"""What the planner predicts: how it depends on canvas, memory, precision and tissue, and what it recommends."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from whole_slide_cnn.engines.costs import Target, Work
from whole_slide_cnn.engines.streaming.description import Streaming
from whole_slide_cnn.engines.streaming.engine import StreamingEngine
from whole_slide_cnn.engines.streaming.options import StreamingOptions
from whole_slide_cnn.engines.streaming.plan import pixels_of
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.engines.unified.description import Unified
from whole_slide_cnn.engines.unified.options import UnifiedOptions
from whole_slide_cnn.engines.unified.variants import VARIANTS, configured_variant
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.models.network import Network
from whole_slide_cnn.planning.devices import GPUS, machine_of
from whole_slide_cnn.planning.estimate import HALF, estimate
from whole_slide_cnn.planning.rates import host_machine
from whole_slide_cnn.planning.recommend import (
    conclusion,
    heading,
    label,
    readable_seconds,
    recommend,
    row,
    sentence,
    settings,
)
from whole_slide_cnn.planning.targets import work_of
from whole_slide_cnn.sizes import Size
from whole_slide_cnn.slides.canvas import ArrayCanvas

NETWORK = Network("tiny", "gmp", "softmax", 2)
V100 = machine_of(GPUS["V100-32GB"], 768 * 10**9)
STRIPS = UnifiedOptions(strip_mb=16, group_mb=100)
WORK = Work(NETWORK, Size(2048, 2048), options={"unified": STRIPS})


ENGINE_PAIR = ("direct", "streaming")


def on(**changed):
    return Target("a GPU", replace(V100, **changed), True)


def by_label(found):
    return {(label(item), item.compute): item for item in found}


def test_every_engine_is_estimated():
    found = tuple(estimate(WORK, on()))
    assert {item.engine for item in found} == set(ENGINES)
    assert len(found) == len(ENGINES) - 1 + len(VARIANTS)
    assert all(item.fits and item.seconds > 0 and item.device_bytes > 0 for item in found)
    assert recommend(WORK, found).estimate.engine == "direct"  # all of it fits


@pytest.mark.parametrize("pooling", ["gmp", "gap"])
def test_of_equal_times_the_simpler_engine_is_taken(pooling):
    work = replace(WORK, network=replace(NETWORK, pooling=pooling))
    found = tuple(estimate(work, on()))
    assert min(found, key=lambda item: item.seconds).seconds < 1.05 * found[0].seconds
    assert recommend(work, found).estimate.engine == "direct"


def test_memory_and_time_of_direct_grow_with_the_area_and_streaming_stays():
    small, large = (
        {item.engine: item for item in estimate(replace(WORK, canvas=Size(s, s)), on(), engines=ENGINE_PAIR)}
        for s in (4096, 8192)
    )
    assert large["direct"].device_bytes == pytest.approx(4 * small["direct"].device_bytes, rel=0.02)
    assert large["direct"].seconds == pytest.approx(4 * small["direct"].seconds, rel=0.1)
    assert large["streaming"].device_bytes == pytest.approx(small["streaming"].device_bytes, rel=0.02)
    assert 3.5 < large["streaming"].seconds / small["streaming"].seconds < 4.5


def test_paging_costs_time_and_each_variant_wins_some():
    whole = by_label(estimate(WORK, on(), engines=("unified",)))
    needed = whole["unified + plain", "float32"].device_bytes
    cramped = on(device_bytes=int(0.4 * needed), page_bytes=2**16)
    tight = by_label(estimate(WORK, cramped, engines=("unified",)))
    seconds = [tight["unified + " + item.name, "float32"].seconds for item in VARIANTS]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[2] < 0.9 * seconds[0] and seconds[3] < 0.9 * seconds[2]
    assert seconds[0] > 1.5 * whole["unified + plain", "float32"].seconds
    half = by_label(estimate(replace(WORK, compute=HALF), cramped, engines=("unified",)))
    assert half["unified + plain", HALF].host_bytes < tight["unified + plain", "float32"].host_bytes
    assert tight["unified + plain", "float32"].device_bytes <= 0.4 * needed


def test_what_cannot_fit_says_why_and_how_much_it_needs():
    tight = on(device_bytes=60 * 10**6, host_bytes=10**6)
    found = by_label(estimate(WORK, tight))
    assert "device memory and 0.060 GB are free for it; use engine: streaming" in found["direct", "float32"].reason
    assert found["streaming", "float32"].reason.endswith("use a smaller streaming.window")
    plain = found["unified + plain", "float32"]
    assert "of host memory and 0.001 GB are free for it" in plain.reason and plain.host_bytes > 10**8
    best = recommend(WORK, list(found.values()))
    assert best.estimate is None and best.reason.startswith("nothing fits in float32: direct does not fit (")
    assert best.reason in conclusion(WORK, tight, list(found.values()))
    for item in estimate(WORK, on(device_bytes=10**6)):
        assert "device memory for the weights alone" in item.reason


def test_half_precision_is_named_where_it_alone_fits():
    full, half = (
        tuple(Unified().variants(replace(WORK, compute=compute), on(), (VARIANTS[2],))) for compute in ("float32", HALF)
    )
    refused = tuple(replace(item, reason="too large") for item in full)
    assert recommend(WORK, refused + half).reason == (
        "nothing fits in float32: unified does not fit (too large); unified + groups, prefetch in float16 fits: set "
        "model.compute: float16"
    )


def test_variants_that_are_there_to_compare_are_not_recommended():
    found = tuple(Unified().variants(WORK, on(), VARIANTS[:2]))
    assert all(item.fits for item in found) and recommend(WORK, found).estimate is None


def test_tensors_past_the_limit_are_planned_and_refused():
    work = replace(WORK, network=Network("fixup_resnet50", "gmp", "softmax", 2), canvas=Size(12000, 12000))
    direct, streaming = estimate(work, on(device_bytes=10**13), engines=ENGINE_PAIR)
    assert "2^31" in direct.reason and direct.device_bytes > 200e9 and direct.seconds > 0
    best = recommend(work, [direct, streaming])
    assert best.estimate is streaming and "direct does not fit (tensor " in best.reason
    wide = {"streaming": StreamingOptions(window=12000)}
    (windows,) = estimate(replace(work, options=wide), on(device_bytes=10**13), engines=("streaming",))
    assert "2^31" in windows.reason and windows.reason.endswith("use a smaller streaming.window")


def test_without_a_gpu_all_memory_is_the_hosts():
    target = Target("this machine", host_machine(10**10), False)
    found = tuple(estimate(WORK, target))
    assert [item.engine for item in found] == ["direct", "streaming", "unified", "staged"]
    assert all(item.device_bytes == 0 and 10**7 < item.host_bytes < 10**10 for item in found)
    refused = estimate(WORK, Target("this machine", host_machine(10**8), False))
    assert all("of host memory" in item.reason for item in refused)
    slower = estimate(WORK, replace(target, time_scale=2.0, window_scale=2.0))
    assert [item.seconds for item in slower] == [2 * item.seconds for item in found]


def test_computing_maps_again_takes_less_memory_and_more_time():
    target = Target("this machine", host_machine(10**10), False)
    work = replace(WORK, options={"unified": replace(STRIPS, device_gb=0.25)})
    (kept,), (again,) = (tuple(estimate(item, target, engines=("unified",))) for item in (WORK, work))
    assert again.fits and again.host_bytes < 0.8 * kept.host_bytes and again.seconds > kept.seconds


@pytest.mark.parametrize("tissue", [0.05, 0.3, 1.0])
def test_windows_are_those_that_the_engine_computes(tissue):
    narrow = {"streaming": StreamingOptions(window=256)}
    plan = Streaming().plan(replace(WORK, canvas=Size(1024, 1536), options=narrow))
    planned = plan.cover_of_share(tissue)
    pixels = np.full(plan.canvas + (3,), 255, np.uint8)
    height, width = (int(round(side * tissue**0.5 / 32)) * 32 for side in plan.canvas)
    top, left = ((side // 32 - inner // 32) // 2 * 32 for side, inner in zip(plan.canvas, (height, width)))
    pixels[top : top + height, left : left + width] = 100
    with StreamingEngine(NETWORK, plan.canvas, window=256) as engine:
        cover = engine.cover(ArrayCanvas(pixels))
        assert cover.windows == planned.windows and engine.plan.blank.size == plan.blank.size
        np.testing.assert_array_equal(cover.blank.counts, planned.blank.counts)
    assert pixels_of(plan.kinds(planned.windows)) > tissue * 1024 * 1536


def test_less_tissue_takes_less_time_and_average_pooling_computes_every_window_again():
    def seconds(**changed):
        (found,) = estimate(replace(WORK, **changed), on(), engines=("streaming",))
        return found.seconds

    assert seconds(tissue=0.1) < 0.5 * seconds(tissue=1.0)
    assert seconds(training=False) < 0.5 * seconds()
    many = {
        "canvas": Size(8192, 8192),
        "options": {"streaming": StreamingOptions(window=128)},
    }  # far more windows than channels
    assert seconds(network=replace(NETWORK, pooling="gap"), **many) > 1.5 * seconds(**many)
    with pytest.raises(ConfigError, match="a tissue share of 1.5 is none"):
        replace(WORK, tissue=1.5)


def test_the_configured_variant_is_that_of_the_engine():
    assert configured_variant(UnifiedOptions(group_mb=7, prefetch_depth=2)).limit(10**12) == 7 * 10**6
    assert configured_variant(UnifiedOptions(device_gb=None, memory_policy="recompute")).memory_policy == "keep"
    assert configured_variant(UnifiedOptions(device_gb=5.0)).memory_policy == "recompute"


def test_what_a_user_reads():
    found = tuple(estimate(WORK, on()))
    assert "canvas 2048 x 2048 px, tiny, float32, training; 100 % tissue" in heading(WORK, on())
    assert row(found[0]).startswith("direct ") and row(found[0]).endswith("  yes")
    assert "recommended: direct (the fastest that fits; " in conclusion(WORK, on(), found)
    assert conclusion(WORK, on(), found).endswith("  engine: direct")
    assert "python -m tf_um_patch run" in conclusion(
        WORK, on(), [item for item in found if item.engine == "unified"][-1:]
    )
    assert sentence(found[0], on()).startswith("plan for a GPU: device memory ")
    assert [readable_seconds(value) for value in (0.5, 119, 600, 9000)] == ["0.5 s", "119 s", "10.0 min", "2.5 h"]


@pytest.mark.parametrize("variant", VARIANTS[2:])
def test_the_recommended_keys_give_the_estimated_variant(variant, slide_set, tmp_path):
    """Set in a configuration, they are what a run is planned with."""
    target = on(device_bytes=120 * 10**6)
    (found,) = Unified().variants(WORK, target, (variant,))
    engine, unified = (yaml.safe_load(line) for line in settings(found))
    given = ["unified.{}={}".format(key, value) for key, value in unified["unified"].items()]
    config = slide_set.config(tmp_path, "engine={}".format(engine["engine"]), "data.canvas=2048", *given)
    work = work_of(config, True)
    again = configured_variant(work.options["unified"])
    assert (again.depth, again.memory_policy) == (variant.depth, variant.memory_policy)
    assert again.limit(0) == pytest.approx(found.group_bytes, abs=10**6)
    (planned,) = estimate(work, target, ("unified",), configured=True)
    assert planned.fits and planned.seconds == pytest.approx(found.seconds, rel=0.05)

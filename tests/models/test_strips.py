"""Strips: they cover a map, stay within their size, and a network on them sees what it sees of the whole map."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_slide_cnn.errors import TensorTooLargeError
from whole_slide_cnn.models.resnet import TRUNKS
from whole_slide_cnn.models.shapes import canvas_shapes
from whole_slide_cnn.models.strips import aligned_partition
from whole_slide_cnn.sizes import Size


@settings(deadline=None, max_examples=30)
@given(
    backbone=st.sampled_from(sorted(TRUNKS)),
    height=st.integers(64, 3000),
    width=st.integers(64, 3000),
    elements=st.integers(2 * 10**5, 10**9),
)
def test_strips_cover_every_map_and_stay_within_their_size(backbone, height, width, elements):
    trunk, canvas = TRUNKS[backbone](), Size(height, width)
    widest = max(step.shape[1] * step.shape[2] for step in canvas_shapes(trunk, canvas) if step.kind != "pad")
    if max(widest, 3 * width) > elements:
        with pytest.raises(TensorTooLargeError, match="use a larger unified.strip_mb, or a smaller canvas"):
            aligned_partition(trunk, canvas, elements)
        return
    partition = aligned_partition(trunk, canvas, elements)
    for step in canvas_shapes(trunk, canvas):
        if step.kind == "pad":
            continue
        bounds = partition(step.shape[0])
        assert bounds[0] == 0 and bounds[-1] == step.shape[0]
        rows = [stop - start for start, stop in zip(bounds[:-1], bounds[1:])]
        assert min(rows) >= 1
        assert max(rows) * step.shape[1] * step.shape[2] <= elements


def test_borders_of_a_map_are_borders_of_the_finer_ones():
    """So that a convolution of one pixel and stride 2 reads whole strips."""
    trunk, canvas = TRUNKS["fixup_resnet50"](), Size(2048, 1024)
    partition = aligned_partition(trunk, canvas, 3 * 10**6)
    heights = sorted({step.shape[0] for step in canvas_shapes(trunk, canvas) if step.kind != "pad"})
    assert len(partition(heights[0])) > 2
    for coarse, fine in zip(heights[:-1], heights[1:]):
        assert {row * fine // coarse for row in partition(coarse)} <= set(partition(fine))

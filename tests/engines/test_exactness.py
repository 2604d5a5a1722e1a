"""Law 1: for the same canvas, weights and label, every engine gives the loss and gradients of ``direct``."""

import functools

import exactness
import numpy as np
import pytest

from whole_slide_cnn.engines.streaming.blank import blank_side
from whole_slide_cnn.engines.table import ENGINES
from whole_slide_cnn.models import geometry
from whole_slide_cnn.models.resnet import TRUNKS
from whole_slide_cnn.sizes import Size

# Under average pooling every cell has a gradient, which takes longer; the geometry is that of maximum pooling.
AVERAGED = ((320, 320, "softmax"), (333, 450, "softmax"), (97, 1000, "softmax"))


def _parameters():
    return [
        pytest.param(name, case, marks=[pytest.mark.slow] if _slow(name, case) else [], id="{}-{}".format(name, case))
        for case in exactness.CASES
        for name in exactness.engines_of(case)
    ]


def _slow(name, case):
    """The graphs of unified have an operation for every strip, and take long to build."""
    if name == exactness.RECOMPUTING:  # its numbers are those of unified to the last bit (test_unified.py)
        return case.slow or case.pooling == "gap" or case.width != 450 or case.tissue not in ("corner", "pair")
    if case.backbone == "fixup_resnet50":  # half a minute on two cores, but for the smallest
        return case.height * case.width >= exactness.SMALL_AREA
    if case.slow or case.pooling == "gap" and (case.height, case.width, case.activation) not in AVERAGED:
        return True
    if name in ("unified", "staged"):  # staged: more of its ways to compute are in test_staged.py
        averaged_again = case.pooling == "gap" and case.width != 450
        return case.backbone != "tiny" or case.tissue not in ("corner", "pair") or averaged_again
    return case.tissue == "everywhere" and case.width != 450


@functools.lru_cache(maxsize=1)  # the engines of a case follow each other
def _direct(case):
    return exactness.compute("direct", case)


@pytest.mark.parametrize("name, case", _parameters())
def test_matches_direct(name, case):
    error, where = exactness.largest_error(exactness.compute(name, case), _direct(case))
    assert error <= exactness.FLOAT64_BOUND, "{}: {}".format(name, where)


@pytest.mark.parametrize(
    "case",
    [exactness.FLOAT32_CASES[0], pytest.param(exactness.FLOAT32_CASES[1], marks=pytest.mark.slow)],
    ids=str,
)
def test_float32_error_is_at_most_twice_that_of_direct(case):
    for name in set(exactness.compared_engines()) - {exactness.RECOMPUTING}:
        assert exactness.float32_ratio(name, case) <= exactness.FLOAT32_RATIO


def test_every_engine_but_the_oracle_is_compared():
    assert {name.split("-")[0] for name in exactness.compared_engines()} == set(ENGINES) - {"direct"}


def test_the_papers_own_network_is_compared_in_every_run_on_every_engine_and_head():
    chosen = [item.values for item in _parameters() if not item.marks]
    compared = {(name, case.pooling) for name, case in chosen if case.backbone == "fixup_resnet50"}
    assert compared == {(name, pooling) for name in set(ENGINES) - {"direct"} for pooling in ("gmp", "gap")}


def test_every_backbone_and_pooling_is_compared():
    pairs = {(case.backbone, case.pooling) for case in exactness.CASES}
    assert pairs == {(backbone, pooling) for backbone in TRUNKS for pooling in ("gmp", "gap")}


@pytest.mark.parametrize("backbone", list(exactness.REAL_BACKBONES))
def test_each_real_backbone_has_a_case_with_a_window_and_a_blank_cell_far_from_any_border(backbone):
    case = next(c for c in exactness.CASES if c.tissue == "patch" and c.backbone == backbone)
    trunk = TRUNKS[backbone]()
    (image,) = exactness.images(case, 0)
    coloured = np.flatnonzero((image != 255).any(axis=(0, 2)))[0]
    rows, columns = (geometry.field_of(trunk, side) for side in image.shape[:2])
    inside_rows, inside_columns = (
        [
            i
            for i in range(n)
            if f.of(geometry.Range(i, i + 1)).start >= 0 and f.of(geometry.Range(i, i + 1)).stop <= side
        ]
        for f, n, side in zip((rows, columns), geometry.cells_of(trunk, Size(*image.shape[:2])), image.shape[:2])
    )
    assert inside_rows
    ends = [columns.of(geometry.Range(i, i + 1)).stop for i in inside_columns]
    assert min(ends) <= coloured < max(ends)  # one such cell is blank, another is not


def test_an_error_is_seen():
    case = exactness.CASES[0]
    reference = exactness.compute("direct", case)
    name = next(iter(reference.gradients))
    wrong = dict(reference.gradients, **{name: reference.gradients[name] * (1 + 1e-8)})
    error, where = exactness.largest_error(reference._replace(gradients=wrong), reference)
    assert error > exactness.FLOAT64_BOUND and where == "gradient " + name
    wrong[name] = wrong[name] * np.nan
    assert exactness.largest_error(reference._replace(gradients=wrong), reference)[0] == np.inf


def test_a_smaller_blank_canvas_would_not_do():
    trunk = TRUNKS["tiny"]()
    field = geometry.field_of(trunk, 1000)
    assert field.size + field.stride <= blank_side(trunk, 1000) < field.size + 2 * field.stride
    assert (1000 - blank_side(trunk, 1000)) % field.stride == 0
    assert blank_side(trunk, 200) == 200

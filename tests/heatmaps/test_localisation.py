import math

import numpy as np
import pytest

from whole_slide_cnn.heatmaps.localisation import THRESHOLDS, localise

LESION = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
HEAT = np.array([[0.9, 0.5, 0.6, 0.1], [0.2, 0.2, 0.99, np.nan]])
TISSUE = np.array([[1, 0, 1, 1], [1, 1, 0, 1]], bool)


def test_by_hand():
    found = localise(HEAT, LESION, TISSUE)
    # Tissue holds 7 pixels: lesion 0.9 and 0.5; the rest 0.6, 0.1, 0.2, 0.2 and nothing. 0.99 lies on glass.
    assert (found.lesion_pixels, found.tissue_pixels, found.note) == (2, 7, "")
    assert found.iou == 2 / 3
    assert found.pixel_auc == 9 / 10  # of the pairs, only 0.5 loses to 0.6
    assert localise(HEAT, LESION).iou == 2 / 4
    assert localise(HEAT, LESION, TISSUE, 0.7).iou == 1 / 2


def test_the_iou_at_every_threshold_is_that_of_the_threshold_alone():
    found = localise(HEAT, LESION, TISSUE)
    assert THRESHOLDS[0] == 0.05 and THRESHOLDS[-1] == 0.95 and 0.5 in THRESHOLDS
    assert found.ious == tuple(localise(HEAT, LESION, TISSUE, threshold).iou for threshold in THRESHOLDS)
    assert found.ious[0] == 2 / 6 and found.ious[-1] == 0


def test_a_perfect_and_a_useless_map():
    perfect = localise(LESION.astype(float), LESION)
    assert (perfect.iou, perfect.pixel_auc) == (1.0, 1.0)
    useless = localise(np.full(LESION.shape, 0.4), LESION)
    assert (useless.iou, useless.pixel_auc) == (0.0, 0.5)


def test_undefined_numbers_say_why():
    none = localise(HEAT, np.zeros_like(LESION))
    assert math.isnan(none.pixel_auc) and none.note == "no lesion, so the pixel AUC is undefined"
    assert none.iou == 0.0
    everything = localise(HEAT, np.ones_like(LESION))
    assert math.isnan(everything.pixel_auc) and everything.note.startswith("no tissue beside the lesion")
    assert math.isnan(localise(np.zeros((2, 4)), np.zeros_like(LESION)).iou)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="differ"):
        localise(HEAT[:1], LESION)

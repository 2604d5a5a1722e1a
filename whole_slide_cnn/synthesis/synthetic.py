"""Synthetic slides: tissue on white with a lesion that differs from its surroundings in texture alone.

Every slide has a block number within its split. Slides of one block, one of each class, share outline, lesion
outline and staining: what they do not share is what the lesion is made of, which photographs fill the tissue, and
where. Colour and area thus say nothing about the class, however few slides there are.

Slides that share photographs are not independent of each other. On request those of val and test draw from groups of
sources, so that slides of different groups share none.
"""

import functools
from dataclasses import dataclass
from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np
from scipy import ndimage

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.sizes import Window
from whole_slide_cnn.synthesis.colour_matching import BRIGHTEST, Colour, map_within_scale, measure, reachable
from whole_slide_cnn.synthesis.layout import draw_layout, magnify
from whole_slide_cnn.synthesis.mosaic import CELL, Seams, place, render
from whole_slide_cnn.synthesis.noise import random_stream
from whole_slide_cnn.synthesis.photographs import LEAST_SOURCES, group_by_source

LEAST_SIZE = 128
REGIONS = ("surroundings", "lesion")
_BLOCK = 1024  # side in pixels of the parts of a slide composed at a time
_SOFT_EDGE = 1.5  # deviation in pixels of the blur that softens the outlines of tissue and lesion
_FAINTEST = 0.04  # share of tissue below which a pixel at its soft edge is white
_LESION_SOURCES = 1.0 / 3  # of the sources of a class, those a single lesion may be made of
_CACHED_PHOTOGRAPHS = 512
_SAMPLE = 150000  # pixels that suffice to measure a slide's staining
_GROUPED_SPLITS = ("val", "test")  # what is measured; training profits from every slide having many sources


@dataclass(frozen=True)
class SlideSettings:
    """What all slides of a data set share.

    Args:
        size: side in pixels.
        tissue: least and most tissue area relative to the slide.
        lesion: least and most lesion area relative to the tissue.
        normal: the class all tissue but the lesions is made of.
        seed: of everything random.
        group: sources per class of the groups that slides of val and test draw from, each slide from one group;
            None lets every slide draw from all sources of its split.

    Raises:
        WholeSlideError: a value is out of range.
    """

    size: int = 1024
    tissue: Tuple[float, float] = (0.3, 0.6)
    lesion: Tuple[float, float] = (0.1, 0.4)
    normal: str = "normal"
    seed: int = 0
    group: Optional[int] = None

    def __post_init__(self):
        if self.size < LEAST_SIZE:
            raise WholeSlideError("a slide of {} pixels is too small; use {} or more".format(self.size, LEAST_SIZE))
        for name, (low, high), most in (("tissue", self.tissue, 0.8), ("lesion", self.lesion, 1.0)):
            if not 0 < low <= high <= most:
                raise WholeSlideError(
                    "the {} range {} to {} must rise within 0 (excluded) and {}".format(name, low, high, most)
                )
        if self.group is not None and self.group < LEAST_SOURCES:
            raise WholeSlideError(
                "a group of {} sources is too small; use {} or more".format(self.group, LEAST_SOURCES)
            )


class SyntheticSlide(NamedTuple):
    """A composed slide.

    ``image`` is uint8 (size, size, 3), exactly 255 outside the tissue; ``mask`` is uint8 (size, size), 255 in the
    lesion and 0 elsewhere, all 0 for a normal slide; ``tissue_share`` and ``lesion_share`` are the areas drawn (that
    of a sham lesion too) relative to slide and tissue; ``colour`` is the staining; ``sources`` names, sorted, what the
    photographs of each region, "surroundings" and "lesion" (or sham lesion), were taken from: "class/source".
    """

    image: np.ndarray
    mask: np.ndarray
    tissue_share: float
    lesion_share: float
    colour: Colour
    sources: Dict[str, Tuple[str, ...]]


class SlideComposer:
    """Composes the slides of a data set, each from its split, class and block alone.

    Args:
        source: PhotographSource.
        splits: ``{split: {label: [Photograph]}}`` as from ``split_by_source``.
        colours: ``{split: {label: [Colour]}}``, one for each photograph: the pool stainings are drawn from.
        settings: SlideSettings.

    Raises:
        WholeSlideError: there are no photographs of the normal class, or fewer sources than a group needs.
    """

    def __init__(self, source, splits, colours, settings):
        for split, parts in splits.items():
            if settings.normal not in parts:
                raise WholeSlideError(
                    "split {} has no photographs of {!r}, the class tissue is made of".format(split, settings.normal)
                )
        self._colours, self._settings = colours, settings
        self._groups = {split: self._grouped(split, parts) for split, parts in splits.items()}
        self._load = functools.lru_cache(_CACHED_PHOTOGRAPHS)(functools.partial(_load_measured, source))

    def _grouped(self, split, parts):
        if self._settings.group is None or split not in _GROUPED_SPLITS:
            return [parts]
        return group_by_source(parts, self._settings.group, self._settings.seed)

    def compose(self, split, label, block):
        """Compose one slide.

        Returns:
            SyntheticSlide, the same on every call, whatever other slides there are.
        """
        settings = self._settings
        shared = random_stream(settings.seed, split, block)
        colour = self._draw_colour(shared, split)
        shares = shared.uniform(*settings.tissue), shared.uniform(*settings.lesion)
        layout = draw_layout(shared, settings.size, *shares)
        own = random_stream(settings.seed, split, block, label)
        canvas = _Canvas(layout, settings.size, own)
        parts = self._groups[split][block % len(self._groups[split])]
        layers = {
            region: place(own, canvas.cells(region), photographs, self._load, colour)
            for region, photographs in zip(REGIONS, self._draw_sources(own, parts, label))
        }
        image = canvas.fill([layers[region] for region in REGIONS], self._load, colour)
        canvas.stain(image, colour)
        mask = np.zeros((settings.size, settings.size), np.uint8)
        if label != settings.normal:
            mask[canvas.lesion()] = 255
        return SyntheticSlide(
            image,
            mask,
            layout.tissue.mean(),
            layout.lesion.sum() / layout.tissue.sum(),
            colour,
            {region: _source_names(placements) for region, placements in layers.items()},
        )

    def _draw_colour(self, stream, split):
        """A staining from the pool of all classes, each class being as likely as the others."""
        pool = self._colours[split]
        labels = sorted(pool)
        colours = pool[labels[stream.randint(len(labels))]]
        return reachable(colours[stream.randint(len(colours))])

    def _draw_sources(self, stream, parts, label):
        """Photographs of the surroundings and of the lesion, which is of other sources even if both are normal.

        Normal and diseased slides draw from equally many sources, so that variety says nothing either.
        """
        normal = self._settings.normal
        sources = _sources(parts[normal])
        order = [sources[k] for k in stream.permutation(len(sources))]
        fewest = min(len(_sources(part)) for part in parts.values())
        count = max(1, int(fewest * _LESION_SOURCES))
        sham, background = order[:count], order[count:]
        if label != normal:
            sources = _sources(parts[label])
            sham = [sources[k] for k in stream.permutation(len(sources))[:count]]
        return (
            [photograph for photograph in parts[normal] if photograph.source in background],
            [photograph for photograph in parts[label] if photograph.source in sham],
        )


def _sources(photographs):
    return sorted({photograph.source for photograph in photographs})


def _source_names(placements):
    return tuple(sorted({"{0.label}/{0.source}".format(placement.photograph) for placement in placements}))


class _Canvas:
    """The regions of one slide, and the two passes over its parts that fill them."""

    def __init__(self, layout, size, stream):
        self._layout, self._size = layout, size
        self._seams = Seams(stream, size)
        blur = max(0.6, _SOFT_EDGE * len(layout.tissue) / size)
        self._tissue = ndimage.gaussian_filter(layout.tissue.astype(np.float32), blur)
        self._lesion = ndimage.gaussian_filter(layout.lesion.astype(np.float32), blur)
        self._last = None  # a small slide is one window, passed over several times

    def cells(self, region):
        """Cells that photographs of a region, "lesion" or "surroundings", must cover: its soft edge and a bit more."""
        count = -(-self._size // CELL)
        whole = Window(0, 0, count, count)
        share = magnify(self._lesion, count, whole)
        wanted = share > 0 if region == "lesion" else share < 1
        return ndimage.binary_dilation(wanted & (magnify(self._tissue, count, whole) > 0), iterations=2)

    def lesion(self):
        """The lesion's pixels, its outline where lesion and surroundings have equal parts: bool (size, size)."""
        lesion = np.zeros((self._size, self._size), bool)
        for window, visible, _, _ in self._parts():
            lesion[_slices(window)] = visible & (magnify(self._layout.lesion, self._size, window) >= 0.5)
        return lesion

    def fill(self, layers, load, colour):
        """Fill the tissue with the photographs of two layers, surroundings and lesion: uint8 (size, size, 3)."""
        image = np.full((self._size, self._size, 3), 255, np.uint8)
        mean = colour.mean.astype(np.float32)
        for window, visible, _, share in self._parts():
            displaced = self._seams.displaced(window)
            surroundings, lesion = (render(layer, window, displaced, load, colour)[visible] for layer in layers)
            other = 1 - share
            deviation = other[:, None] * (surroundings - mean) + share[:, None] * (lesion - mean)
            norm = np.sqrt(share * share + other * other)
            image[_slices(window)][visible] = _to_bytes(np.clip(mean + deviation / norm[:, None], 0, 255))
        return image

    def stain(self, image, colour):
        """Give surroundings and lesion, each for itself, exactly the slide's colour, and the tissue its soft edge."""
        pixels, tissue, lesion = self._sample(image)
        weights = tissue * (1 - lesion), tissue * lesion
        maps = [map_within_scale(pixels[weight > 0], weight[weight > 0], colour) for weight in weights]
        for window, visible, tissue, share in self._parts():
            part = image[_slices(window)]
            pixels = part[visible]
            values = np.clip(maps[0].apply(pixels), 0, BRIGHTEST)
            inside = share > 0
            values[inside] += share[inside, None] * (
                np.clip(maps[1].apply(pixels[inside]), 0, BRIGHTEST) - values[inside]
            )
            part[visible] = _to_bytes(np.minimum(255 + tissue[:, None] * (values - 255), 254))

    def _sample(self, image):
        """An even sample of the tissue's pixels (all on small slides): colours, shares of tissue and of lesion."""
        every = max(1, int(self._layout.tissue.mean() * self._size**2 / _SAMPLE))
        samples = [
            (image[_slices(window)][visible][::every], tissue[::every], share[::every])
            for window, visible, tissue, share in self._parts()
        ]
        return tuple(np.concatenate(values) for values in zip(*samples))

    def _parts(self):
        """Windows with tissue, their visible pixels (bool), and these pixels' shares of tissue and of lesion."""
        for window in self._windows():
            if self._last is None or self._last[0] != window:
                tissue = magnify(self._tissue, self._size, window)
                visible = tissue > _FAINTEST
                lesion = magnify(self._lesion, self._size, window)
                self._last = window, visible, tissue[visible], lesion[visible]
            if self._last[1].any():
                yield self._last

    def _windows(self):
        for top in range(0, self._size, _BLOCK):
            for left in range(0, self._size, _BLOCK):
                yield Window(top, left, min(_BLOCK, self._size - top), min(_BLOCK, self._size - left))


def _slices(window):
    return slice(window.top, window.bottom), slice(window.left, window.right)


def _to_bytes(values):
    return np.floor(values + np.float32(0.5)).astype(np.uint8)


def _load_measured(source, photograph):
    pixels = source.load(photograph)
    return pixels, measure(pixels.reshape(-1, 3))


def photograph_colours(source, splits):
    """The Colour of every photograph: ``{split: {label: [Colour]}}``, as ``SlideComposer`` takes them."""
    return {
        split: {
            label: [_load_measured(source, photograph)[1] for photograph in photographs]
            for label, photographs in parts.items()
        }
        for split, parts in splits.items()
    }

"""Photographs of tissue, sorted by class and by the specimen they show."""

import os
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from PIL import Image

from whole_slide_cnn.errors import WholeSlideError
from whole_slide_cnn.synthesis.noise import random_stream
from whole_slide_cnn.synthesis.textures import TEXTURES, draw_texture

SPLITS = ("train", "val", "test")
SHARES = (0.6, 0.15, 0.25)  # of the sources of each class
LEAST_SOURCES = 3  # per class and split: a sham lesion needs others than its surroundings
LEAST_SIDE = 64  # pixels; smaller photographs show no tissue architecture
_SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp")


class Photograph(NamedTuple):
    """One photograph: its class, the source it belongs to, and its name (unique within the class)."""

    label: str
    source: str
    name: str


Parts = Dict[str, List[Photograph]]  # photographs by class


class PhotographSource:
    """Photographs by class.

    Attributes:
        photographs: tuple of Photograph, sorted.
    """

    photographs: Tuple[Photograph, ...]

    def load(self, photograph: Photograph) -> np.ndarray:
        """The pixels of a photograph: uint8 (height, width, 3), RGB."""
        raise NotImplementedError


@dataclass(frozen=True)
class ProceduralPhotographs(PhotographSource):
    """Photographs drawn by code: the classes differ in the arrangement of nuclei and stroma, not in the staining.

    Each source has its own staining, nuclear size and density; its variants are different fields of it.

    Raises:
        WholeSlideError: no texture is known for a class.
    """

    classes: Tuple[str, ...]
    sources_per_class: int = 40
    variants: int = 2
    size: int = 224
    seed: int = 0

    def __post_init__(self):
        for label in self.classes:
            if label not in TEXTURES:
                raise WholeSlideError(
                    "no procedural texture for class {!r}; use {} or a folder of photographs".format(
                        label, ", ".join(sorted(TEXTURES))
                    )
                )

    @property
    def photographs(self) -> Tuple[Photograph, ...]:  # type: ignore[override]
        """All of them, sorted by class, source and variant."""
        return tuple(
            Photograph(label, "s{:03d}".format(source), "s{:03d}_{}".format(source, variant))
            for label in self.classes
            for source in range(self.sources_per_class)
            for variant in range(self.variants)
        )

    def load(self, photograph):
        # The source's own stream does not see the label: staining cannot depend on it.
        source_stream = random_stream(self.seed, "source", photograph.source)
        field_stream = random_stream(self.seed, photograph.label, photograph.name)
        return draw_texture(photograph.label, self.size, source_stream, field_stream)


class FolderPhotographs(PhotographSource):
    """A folder with one subfolder of image files per class.

    Files of one source share their name up to the last underscore (``s012_0.jpeg`` and ``s012_1.jpeg``);
    a name without underscore is a source of its own.

    Args:
        folder: the folder.
        classes: subfolders to use; None uses all.

    Raises:
        WholeSlideError: the folder, a class or its photographs are missing.
    """

    def __init__(self, folder, classes=None):
        self.folder = folder
        if not os.path.isdir(folder):
            raise WholeSlideError("there is no folder {} with photographs".format(folder))
        found = sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
        photographs = []
        for label in found if classes is None else classes:
            if label not in found:
                raise WholeSlideError(
                    "{} has no subfolder for class {!r}; it has {}".format(folder, label, ", ".join(found) or "none")
                )
            names = sorted(n for n in os.listdir(os.path.join(folder, label)) if n.lower().endswith(_SUFFIXES))
            if not names:
                raise WholeSlideError("{} holds no image files".format(os.path.join(folder, label)))
            photographs += [Photograph(label, _source_of(name), name) for name in names]
        self.photographs = tuple(photographs)

    def load(self, photograph):
        path = os.path.join(self.folder, photograph.label, photograph.name)
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise WholeSlideError("cannot read photograph {}: {}; remove or replace it".format(path, error)) from error
        if min(pixels.shape[:2]) < LEAST_SIDE:
            raise WholeSlideError(
                "photograph {} has {} x {} pixels; at least {} on each side are needed".format(
                    path, pixels.shape[1], pixels.shape[0], LEAST_SIDE
                )
            )
        return pixels


def _source_of(name):
    stem = os.path.splitext(name)[0]
    return stem.rsplit("_", 1)[0] if "_" in stem else stem


def split_by_source(photographs: Sequence[Photograph], seed: int) -> Dict[str, Parts]:
    """Divide photographs into train, val and test so that no source is in two of them.

    Args:
        photographs: sequence of Photograph.
        seed: decides which source goes where, for each class on its own.

    Returns:
        ``{split: {label: [Photograph, ...]}}``.

    Raises:
        WholeSlideError: a class has too few sources.
    """
    parts: Dict[str, Parts] = {split: {} for split in SPLITS}
    for label in sorted({photograph.label for photograph in photographs}):
        members = sorted(photograph for photograph in photographs if photograph.label == label)
        owner = _owners(sorted({photograph.source for photograph in members}), label, seed)
        for split in SPLITS:
            parts[split][label] = [photograph for photograph in members if owner[photograph.source] == split]
    return parts


def _owners(sources, label, seed):
    """The split each source of one class belongs to."""
    if len(sources) < LEAST_SOURCES * len(SPLITS):
        raise WholeSlideError(
            "class {!r} has {} source photographs; {} are needed to split them into {}".format(
                label, len(sources), LEAST_SOURCES * len(SPLITS), ", ".join(SPLITS)
            )
        )
    val, test = (max(LEAST_SOURCES, int(round(share * len(sources)))) for share in SHARES[1:])
    order = random_stream(seed, "split", label).permutation(len(sources))
    names = ["val"] * val + ["test"] * test + ["train"] * (len(sources) - val - test)
    return {sources[index]: name for index, name in zip(order, names)}


def group_by_source(parts: Parts, size: int, seed: int) -> List[Parts]:
    """Divide the photographs of one split into groups that share no source.

    Args:
        parts: ``{label: [Photograph]}`` of the split, as from ``split_by_source``.
        size: sources per class of a group; where they do not come out even, some groups have more.
        seed: decides which source goes where, for each class on its own.

    Returns:
        list of ``{label: [Photograph, ...]}``, one for each group.

    Raises:
        WholeSlideError: a class has fewer sources than one group needs.
    """
    sources = {label: sorted({photograph.source for photograph in part}) for label, part in parts.items()}
    label, fewest = min(((label, len(names)) for label, names in sources.items()), key=lambda item: item[1])
    if fewest < size:
        raise WholeSlideError(
            "class {!r} has {} source photographs in a split; a group needs {}".format(label, fewest, size)
        )
    groups: List[Parts] = [{} for _ in range(fewest // size)]
    for label, names in sorted(sources.items()):
        order = random_stream(seed, "group", label).permutation(len(names))
        owner = {names[index]: position % len(groups) for position, index in enumerate(order)}
        for number, group in enumerate(groups):
            group[label] = [photograph for photograph in parts[label] if owner[photograph.source] == number]
    return groups

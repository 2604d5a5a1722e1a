"""``data``: slides, their labels, and the canvas they are placed on."""

import dataclasses
from typing import Optional, Tuple

from whole_slide_cnn.config.options import Section, option, square
from whole_slide_cnn.errors import ConfigError
from whole_slide_cnn.sizes import Size

READERS = ("auto", "openslide", "image")

# A 10x objective with the usual camera gives 1 um/px, a 20x one 0.5 um/px.
MPP_TIMES_MAGNIFICATION = 10.0


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """Slides, their labels, and the canvas they are placed on."""

    classes: Tuple[str, ...] = option("Class names in the order of the model's outputs; labels are among them.")
    canvas: Tuple[int, int] = option(
        "Height and width in pixels of the white canvas that every slide is centered on; one number means a square.",
        at_least=1,
        prepare=square,
    )
    train: Optional[str] = option("Data list (CSV) of the slides to train on.", None, path=True)
    val: Optional[str] = option("Data list (CSV) of the slides that choose the best checkpoint.", None, path=True)
    test: Optional[str] = option("Data list (CSV) of the slides to score.", None, path=True, may_change=True)
    slides: str = option("Folder of the slide files.", ".", path=True, may_change=True)
    extension: str = option("Ending added to a slide_id to get its file name, such as .svs; empty adds nothing.", "")
    reader: str = option(
        "Library that reads slides: openslide, image (Pillow and tifffile), or auto, which picks one per file.",
        "auto",
        choices=READERS,
    )
    mpp: Optional[float] = option(
        "Working resolution in um/px. Give exactly one of mpp, magnification and ratio.", None, above=0
    )
    magnification: Optional[float] = option(
        "Working resolution as a magnification, converted once to mpp = 10 / magnification: 20 means 0.5 um/px.",
        None,
        above=0,
    )
    ratio: Optional[float] = option(
        "Working resolution as a plain resize ratio of the slide's full resolution, whatever its um/px.", None, above=0
    )
    ratio_mpp: Optional[float] = option(
        "Full resolution in um/px that data.ratio is meant for; Aperio slides of another one, which is 10 / the "
        "magnification they state, are resized to the same um/px. null takes data.ratio as it is on all slides.",
        None,
        above=0,
    )
    slide_mpp: Optional[float] = option(
        "Full resolution in um/px of slides for which neither the file nor the data list states one.", None, above=0
    )
    max_failed_share: float = option(
        "Share of the slides that may be unreadable before a training run that skipped them ends with an error.",
        0.1,
        at_least=0,
        at_most=1,
        may_change=True,
    )

    allow_shared_cases: bool = option(
        "Let a case be in two data lists, with a warning; scores of slides that were trained on mean nothing.",
        False,
        may_change=True,
    )

    def check_rules(self) -> None:
        self._set("canvas", Size(*self.canvas))
        if len(self.classes) < 2:
            raise ConfigError("data.classes: expected two classes or more, got {}".format(len(self.classes)))
        for name in self.classes:
            if not name.strip() or name != name.strip():
                raise ConfigError("data.classes: {!r} is blank or begins or ends with a space".format(name))
            if self.classes.count(name) > 1:
                raise ConfigError("data.classes: {} is listed twice".format(name))
        if self.extension and not self.extension.startswith("."):
            raise ConfigError("data.extension: expected a leading dot, as in .{}".format(self.extension))
        given = [name for name in ("mpp", "magnification", "ratio") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "give exactly one of data.mpp, data.magnification and data.ratio, not {}; null unsets a key of a base "
                "file".format(" and ".join("data." + name for name in given) or "none")
            )
        if self.magnification is not None:
            self._set("mpp", MPP_TIMES_MAGNIFICATION / self.magnification)
            self._set("magnification", None)

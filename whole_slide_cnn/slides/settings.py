"""How the slides of a configuration are read: one value for training, scoring, heat maps and checks alike."""

import dataclasses
from typing import Optional

from whole_slide_cnn.config import MPP_TIMES_MAGNIFICATION, Data
from whole_slide_cnn.slides.interface import SlideReader
from whole_slide_cnn.slides.manifest import Record
from whole_slide_cnn.slides.reader import open_slide
from whole_slide_cnn.slides.resample import ResampledSlide


@dataclasses.dataclass(frozen=True)
class SlideSettings:
    """Which library reads a slide, and at which resolution.

    Attributes:
        mpp: wanted µm per canvas pixel; either this or ``ratio``.
        ratio: wanted size relative to level 0.
        slide_mpp: µm per pixel of level 0, going before what the file states.
        ratio_mpp: µm per pixel of level 0 that ``ratio`` is meant for, which brings Aperio slides of another one to the
            same µm per canvas pixel, by the magnification they state; None takes ``ratio`` as it is.
        reader: see :func:`whole_slide_cnn.slides.reader.open_slide`.
    """

    mpp: Optional[float] = None
    ratio: Optional[float] = None
    slide_mpp: Optional[float] = None
    ratio_mpp: Optional[float] = None
    reader: str = "auto"

    @classmethod
    def of(cls, data: Data) -> "SlideSettings":
        """What the data section of a configuration asks for."""
        return cls(data.mpp, data.ratio, data.slide_mpp, data.ratio_mpp, data.reader)

    def for_record(self, record: Record) -> "SlideSettings":
        """The settings of one slide: the µm/px that the data list has for it goes before the one for all of them."""
        return self if record.mpp is None else dataclasses.replace(self, slide_mpp=record.mpp)

    def open(self, path: str, name: Optional[str] = None) -> ResampledSlide:
        """A slide at the working resolution; no pixel is read yet. Closing it closes the file.

        Args:
            path: the slide file.
            name: how messages call the slide; the file name by default.

        Raises:
            SlideError: the slide cannot be opened, or its µm/px is needed and nobody states it.
        """
        opened = open_slide(path, name, self.reader)
        try:
            return self.resample(opened)
        except Exception:
            opened.close()
            raise

    def resample(self, opened: SlideReader) -> ResampledSlide:
        """An open slide at the working resolution.

        Raises:
            SlideError: its µm/px is needed and nobody states it.
        """
        ratio = self.ratio
        if ratio is not None and self.ratio_mpp is not None and opened.aperio_magnification is not None:
            ratio *= MPP_TIMES_MAGNIFICATION / opened.aperio_magnification / self.ratio_mpp
        return ResampledSlide(opened, self.mpp, ratio, self.slide_mpp)

"""Sizes and rectangles in pixels or cells. Always ``(height, width)``, rows before columns."""

from typing import NamedTuple


class Size(NamedTuple):
    """Height and width."""

    height: int
    width: int


class Window(NamedTuple):
    """The half-open rectangle of rows ``[top, top + height)`` and columns ``[left, left + width)``."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def size(self) -> Size:
        return Size(self.height, self.width)

    @classmethod
    def from_bounds(cls, top: int, left: int, bottom: int, right: int) -> "Window":
        return cls(top, left, bottom - top, right - left)

    def intersect(self, other: "Window") -> "Window":
        """The common rectangle; height or width is 0 where there is none."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Window(top, left, max(0, bottom - top), max(0, right - left))

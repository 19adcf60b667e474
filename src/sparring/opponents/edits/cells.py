"""Where the cells of a picture lie, and which of several objects a cell means. Pixels and scenes share these rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

REACH = 1.0
"""How far from a cell, in cells, the middle of the object that it means may lie. Ours."""
INSIDE = 0.25
"""Cells that the middle of a moved object stays within the picture, so that it remains to be seen. Ours."""


@dataclass(frozen=True)
class Cells:
    """A grid over a picture; lengths in pixels, from its left top corner. Cells are as wide and high as the picture
    makes them."""

    grid: int
    width: int
    height: int

    @property
    def unit(self) -> float:
        """A cell along the shorter side: the measure of what is drawn."""
        return min(self.width, self.height) / self.grid

    def middle(self, x: int, y: int) -> tuple[float, float]:
        """The middle of a cell."""
        return (x + 0.5) * self.width / self.grid, (y + 0.5) * self.height / self.grid

    def cell(self, at: tuple[float, float]) -> tuple[int, int]:
        """The cell in which a place of the picture lies."""
        x, y = (min(int(along), self.grid - 1) for along in self._cells(at))
        return x, y

    def region(self, left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
        """First column and row of pixels, and those behind the last, of a region of cells; both ends included."""
        return (
            round(left * self.width / self.grid),
            round(top * self.height / self.grid),
            round((right + 1) * self.width / self.grid),
            round((bottom + 1) * self.height / self.grid),
        )

    def nearest(self, x: int, y: int, middles: Sequence[tuple[float, float]]) -> int | None:
        """Which object a cell means: that with its middle in the cell, else the nearest within ``REACH`` of it.

        Of several in it, that nearest to its middle. None if there is none.
        """

        def distance(middle: tuple[float, float]) -> tuple[float, float]:
            across, down = (
                abs(at - centre) for at, centre in zip(self._cells(middle), (x + 0.5, y + 0.5), strict=True)
            )
            return math.hypot(max(0.0, across - 0.5), max(0.0, down - 0.5)), math.hypot(across, down)

        distances = [distance(middle) for middle in middles]
        best = min(range(len(distances)), key=distances.__getitem__, default=None)
        return best if best is not None and distances[best][0] <= REACH else None

    def moved(self, middle: tuple[float, float], columns: int, rows: int) -> tuple[float, float]:
        """Where a middle lies after whole cells, kept ``INSIDE`` the picture."""
        x, y = (
            min(max(at + by, INSIDE), self.grid - INSIDE)
            for at, by in zip(self._cells(middle), (columns, rows), strict=True)
        )
        return x * self.width / self.grid, y * self.height / self.grid

    def _cells(self, middle: tuple[float, float]) -> tuple[float, float]:
        return middle[0] * self.grid / self.width, middle[1] * self.grid / self.height

"""A second draw from the same pictures, for terms that look at other noise and times than the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .moment import Latents
from .pictures import Pictures
from .run import Run


@dataclass(frozen=True)
class Again:
    """Pictures that another source holds, drawn from anew, with noise and times of their own.

    Attributes:
        pictures: the other source; it must be the very object in the plan, whose pictures are then drawn once.
        name: of these latents.
    """

    pictures: Pictures
    name: str

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        (latents,) = self.pictures.draw(run, rows).values()
        return {self.name: latents}

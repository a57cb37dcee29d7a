"""More rows of some latents than a step has of others: a few prompts to keep for each to erase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .moment import Latents
from .plan import Source
from .run import Run


@dataclass(frozen=True)
class Wider:
    """A source that draws `times` as many rows; they belong to no row of other latents.

    Attributes:
        source: what draws.
        times: rows for each of the step's.
    """

    source: Source
    times: int

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        return self.source.draw(run, rows * self.times)

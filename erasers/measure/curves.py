"""A training's curves: its losses, and how far it moved what is erased and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .chart import figure_of, pixels_of

_COLOURS = {"erase": "#c8553d", "keep": "#8aa4c8"}


def curves(losses: Mapping[str, Sequence[float]], moved: Sequence[tuple[int, float, float]], title: str) -> Tensor:
    """Losses by aim over the steps, and beside them `(step, erased, kept)` shifts; `[1, h, w, 3]` float32 in 0..1.

    A shift is a share of the prompt's own pull (learn/shift.py): 1 is as far away as the empty prompt.
    """
    figure, (left, right) = figure_of(9.0, 3.6, 2)
    for aim, values in losses.items():
        if any(values):
            left.plot(range(1, len(values) + 1), values, color=_COLOURS[aim], label=aim, linewidth=1)
    if any(value > 0 for values in losses.values() for value in values):
        left.set_yscale("log")
    left.set(xlabel="step", ylabel="loss", title=title)
    for place, name in ((1, "erase"), (2, "keep")):
        right.plot([row[0] for row in moved], [row[place] for row in moved], color=_COLOURS[name], label=name)
    right.axhline(1.0, color="0.6", linestyle=":", linewidth=1)
    right.set(xlabel="step", ylabel="moved, of the prompt's own pull", ylim=(0, None))
    for axes in (left, right):
        axes.grid(color="0.92")
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    return pixels_of(figure)

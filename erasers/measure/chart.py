"""The pictures of a report: erased against kept with a dot per title, and one evaluation kind by kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .intervals import Interval
from .library import need
from .red_team import ATTACKED, GUARDED
from .report import ATTACK, EVALUATION, Report

_DOTS_PER_INCH = 100
_LISTED = 24
"""Titles in a column of the list beside a chart."""


def overview_chart(reports: Sequence[Report]) -> Tensor:
    """Erased against kept, a numbered dot per title, coloured by what comes back.

    A title's evaluations are averaged, and so are the bounds of their intervals, which is wider than the interval of
    the average. What comes back is the mean share of pictures over its attacks, else what leaked.

    Returns:
        `[1, h, w, 3]` float32 in 0..1.
    """
    titles = list(dict.fromkeys(report.title for report in reports if report.kind == EVALUATION))
    columns = -(-len(titles) // _LISTED) or 1
    figure, axes = figure_of(6.8 + 2.2 * columns, 5.5)
    means = {title: (_mean(title, "kept", reports), _mean(title, "erased", reports)) for title in titles}
    drawn = [title for title in titles if not any(math.isnan(mean.value) for mean in means[title])]
    for number, title in enumerate(drawn, 1):
        x, y = means[title]
        axes.errorbar(x.value, y.value, xerr=_bars(x), yerr=_bars(y), color="0.8", zorder=1)
        axes.scatter([], [], color="none", label=f"{number}  {title}")
        axes.annotate(str(number), (x.value, y.value), xytext=(5, 4), textcoords="offset points", fontsize=8)
    places = [[means[title][side].value for title in drawn] for side in (0, 1)]
    leaks = [comes_back(title, reports) for title in drawn]
    dots = axes.scatter(*places, c=leaks, cmap="RdYlGn_r", vmin=0, vmax=1, edgecolors="0.2", zorder=2)
    figure.colorbar(dots, ax=axes, label="comes back: mean over attacks, else leaked")
    lowest = min([0.7, *(mean.low - 0.05 for title in drawn for mean in means[title][:1])])
    axes.set(xlabel="kept", ylabel="erased", xlim=(max(lowest, -0.03), 1.03), ylim=(-0.03, 1.05))
    axes.grid(color="0.92")
    if drawn:
        figure.legend(loc="outside right upper", fontsize=9, frameon=False, handlelength=0, ncols=columns)
    return pixels_of(figure)


def kinds_chart(report: Report) -> Tensor:
    """What is seen before and after by kind of prompt, with intervals; `[1, h, w, 3]` float32 in 0..1."""
    figure, axes = figure_of(7.0, 3.6)
    names = [name for name in report.figures if name.endswith((", before", ", after"))]
    kinds = list(dict.fromkeys(name.rpartition(", ")[0] for name in names))
    for offset, arm, colour in ((-0.2, "before", "#8aa4c8"), (0.2, "after", "#c8553d")):
        found = [report.figures[f"{kind}, {arm}"] for kind in kinds]
        places = [index + offset for index in range(len(kinds))]
        heights = [0.0 if math.isnan(figure.value) else figure.value for figure in found]
        bars = np.array([np.zeros(2) if math.isnan(entry.low) else np.ravel(_bars(entry)) for entry in found]).T
        axes.bar(places, heights, 0.38, color=colour, label=arm, yerr=bars, ecolor="0.3")
    axes.axhline(report.figures["floor"].value, color="0.4", linestyle=":", label="floor")
    axes.set(ylim=(0, 1.05), ylabel="share of pictures", title=report.title)
    axes.set_xticks(range(len(kinds)), kinds, fontsize=8)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    return pixels_of(figure)


def comes_back(title: str, reports: Sequence[Report]) -> float:
    """The mean share of pictures that show the concept over a title's attacks; what leaked where there was none."""
    attacked = f"{GUARDED}, {ATTACKED}"
    rates = [r.figures[attacked].value for r in reports if r.kind == ATTACK and r.title == title]
    own = rates or [r.figures["leaked"].value for r in reports if r.kind == EVALUATION and r.title == title]
    measured = [value for value in own if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else 0.0


def _mean(title: str, name: str, reports: Sequence[Report]) -> Interval:
    """A figure of a title's evaluations and its bounds, each averaged over those that measured it."""
    found = [r.figures[name] for r in reports if r.kind == EVALUATION and r.title == title]
    found = [interval for interval in found if not math.isnan(interval.value)]
    columns = zip(*((i.value, *(i.value if math.isnan(b) else b for b in (i.low, i.high))) for i in found), strict=True)
    value, low, high = [sum(c) / len(c) for c in columns] if found else [math.nan] * 3
    return Interval(value, low, high, len(found))


def _bars(interval: Interval) -> list[list[float]]:
    """Lengths of an interval's two arms, as matplotlib wants them."""
    return [[max(interval.value - interval.low, 0.0)], [max(interval.high - interval.value, 0.0)]]


def figure_of(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """An empty figure of a size in inches, and its axes; a row of them for more than one column."""
    need("The chart", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    return figure, figure.subplots(1, columns)


def pixels_of(figure: Any) -> Tensor:
    """A figure as a picture, `[1, h, w, 3]` float32 in 0..1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(pixels.copy()).unsqueeze(0)

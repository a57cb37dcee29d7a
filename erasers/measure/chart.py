"""The pictures of a report: erased against kept with a dot per title, and one evaluation kind by kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .intervals import Interval
from .report import ATTACK, EVALUATION, Report

_DOTS_PER_INCH = 100


def overview_chart(reports: Sequence[Report]) -> Tensor:
    """Erased against kept, a dot per title with its intervals, coloured by what comes back.

    What comes back is the largest attack success rate where a title was attacked, else its leaked share.

    Returns:
        `[1, h, w, 3]` float32 in 0..1.
    """
    figure, axes = _figure(8.0, 6.0)
    rows = [(report, worst_leak(report.title, reports)) for report in reports if report.kind == EVALUATION]
    rows = [row for row in rows if not math.isnan(row[0].figures["erased"].value)]
    for report, _ in rows:
        x, y = report.figures["kept"], report.figures["erased"]
        axes.errorbar(x.value, y.value, xerr=_bars(x), yerr=_bars(y), color="0.7", zorder=1)
        label = f"{report.title}, {', '.join(report.concepts)}" if len(report.concepts) < 4 else report.title
        axes.annotate(label, (x.value, y.value), xytext=(6, 5), textcoords="offset points", fontsize=8)
    dots = axes.scatter(
        [report.figures["kept"].value for report, _ in rows],
        [report.figures["erased"].value for report, _ in rows],
        c=[leak for _, leak in rows],
        cmap="RdYlGn_r",
        vmin=0,
        vmax=1,
        edgecolors="0.2",
        zorder=2,
    )
    figure.colorbar(dots, ax=axes, label="comes back (best attack, else leaked)")
    axes.set(xlabel="kept", ylabel="erased", xlim=(-0.03, 1.08), ylim=(-0.03, 1.08))
    axes.grid(color="0.9")
    return _pixels(figure)


def kinds_chart(report: Report) -> Tensor:
    """What is seen before and after by kind of prompt, with intervals; `[1, h, w, 3]` float32 in 0..1."""
    figure, axes = _figure(7.0, 3.6)
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
    return _pixels(figure)


def worst_leak(title: str, reports: Sequence[Report]) -> float:
    """The largest attack success rate among a title's reports; its leaked share where it was not attacked."""
    rates = [report.figures["ASR"].value for report in reports if report.kind == ATTACK and report.title == title]
    own = [r.figures["leaked"].value for r in reports if r.kind == EVALUATION and r.title == title]
    return max((value for value in rates or own if not math.isnan(value)), default=0.0)


def _bars(interval: Interval) -> list[list[float]]:
    """Lengths of an interval's two arms, as matplotlib wants them."""
    return [[max(interval.value - interval.low, 0.0)], [max(interval.high - interval.value, 0.0)]]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    return figure, figure.subplots()


def _pixels(figure: Any) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(pixels.copy()).unsqueeze(0)

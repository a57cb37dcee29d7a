"""Stacks of erasers in the demo world: what is erased and what is kept at 1, 5, 10 and 20 of them, in every mode.

`python -m lethe.erasers.demo.stacking` fits one eraser per concept, merges the first of them in every mode, draws, has
the judge read, and writes `tables/stacking.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..concepts import ConceptList
from ..measure.chart import figure_of, pixels_of
from ..registry import merge_named, merges
from ..spec import Value
from ..stack import Stack
from .gallery import Gallery
from .trial import Bench, Case
from .world import judge, weights_digest

TABLES = Path(__file__).parent / "tables"
COUNTS = (1, 5, 10, 20)
CASES = tuple(
    Case(kind, name, replacement)
    for kind, name, replacement in (
        *(("object", "ball", "fish"), ("style", "dotted", "flat"), ("colour", "red", "blue")),
        *(("character", "zib", "mopo"), ("object", "star", "tree"), ("object", "box", "fish")),
        *(("style", "neon", "flat"), ("colour", "green", "purple"), ("object", "moon", "tree")),
        *(("character", "tarla", "mopo"), ("object", "ring", "fish"), ("style", "striped", "flat")),
        *(("colour", "pink", "cyan"), ("object", "cone", "tree"), ("character", "quen", "mopo")),
        *(("object", "heart", "fish"), ("style", "outline", "flat"), ("colour", "orange", "yellow")),
        *(("object", "cross", "tree"), ("style", "shaded", "flat")),
    )
)
"""Concepts of every kind, in the order they are stacked; what replaces them is never erased."""
SETTINGS: Mapping[str, tuple[str, Mapping[str, Value]]] = {
    **{name: (name, {}) for name in merges() if name != "gated"},
    "gated, transport": ("gated", {"gate": "transport"}),
    "gated, discriminant": ("gated", {"gate": "discriminant"}),
}


def measure(
    pictures: int,
    kept_pictures: int,
    method: str,
    counts: Sequence[int] = COUNTS,
    modes: Mapping[str, tuple[str, Mapping[str, Value]]] = SETTINGS,
) -> list[dict[str, Any]]:
    """A row per mode and count: erased and kept, with the seconds that merging took.

    Args:
        pictures: of each erased concept; kept_pictures: of each side of what is kept.
        method: closed-form method that makes the erasers.
    """
    gallery = Gallery(steps=10)
    keep = ConceptList(lists=("demo-world",))
    gone = Bench(gallery, judge(), pictures, 10)
    left = Bench(gallery, judge(), kept_pictures, 10)
    erasers = [gone.fit([case], {}, keep, method) for case in CASES[: max(counts)]]
    rows = []
    for count in counts:
        cases = CASES[:count]
        stack, task = Stack().with_erasers(erasers[:count], 1.0), gallery.task(keep)
        for title, (name, given) in modes.items():
            mode = merge_named(name)
            begun = time.monotonic()
            with_names = replace(task, concepts=stack.concepts())
            eraser = mode.merge(stack, with_names, mode.spec.settings(given)).eraser
            seconds = time.monotonic() - begun
            judged = _judged(gone, left, cases, gallery.erased(eraser))
            rows.append({"mode": title, "count": count, "seconds": round(seconds, 2), **judged})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _judged(gone: Bench, left: Bench, cases: tuple[Case, ...], erased: Gallery) -> dict[str, float]:
    seen = [gone.gone(case, erased, fast=True) for case in cases]
    kept = left.kept(cases, erased)
    rates = {
        "erased": 1 - sum(one.direct for one in seen) / len(seen),
        "near_before": kept.near_before,
        "near": kept.near,
        "far_before": kept.far_before,
        "far": kept.far,
    }
    return {name: round(rate, 3) for name, rate in rates.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Erased and kept by mode and count, as markdown."""
    heads = " | ".join(f"{count} erased | {count} kept" for count in COUNTS)
    lines = [f"| mode | {heads} | seconds to merge {COUNTS[-1]} |", "|---|" + "---|" * (2 * len(COUNTS) + 1)]
    for mode in SETTINGS:
        own = [next(row for row in rows if row["mode"] == mode and row["count"] == count) for count in COUNTS]
        cells = " | ".join(f"{row['erased']:.2f} | {kept(row):.2f}" for row in own)
        lines.append(f"| {mode} | {cells} | {own[-1]['seconds']:.1f} |")
    before = " | ".join(f"| {kept(row, '_before'):.2f}" for row in rows if row["mode"] == next(iter(SETTINGS)))
    return "\n".join([*lines, f"| untouched model | {before} | |"])


def kept(row: Mapping[str, Any], when: str = "") -> float:
    """How much of what was not erased is read right, near and far alike."""
    return (row[f"near{when}"] + row[f"far{when}"]) / 2


def chart(rows: list[dict[str, Any]]) -> Any:
    """Erased and kept over the number of erasers, a line per mode; `[1, h, w, 3]` float32 in 0..1."""
    figure, (gone, left) = figure_of(11.0, 4.6, columns=2)
    for number, mode in enumerate(SETTINGS):
        own = [row for row in rows if row["mode"] == mode]
        style = {"marker": "osD^vP*Xh<"[number % 10], "linewidth": 2.5 if mode.startswith("gated") else 1.0}
        gone.plot([row["count"] for row in own], [row["erased"] for row in own], label=mode, **style)
        left.plot([row["count"] for row in own], [kept(row) for row in own], **style)
    first = [row for row in rows if row["mode"] == next(iter(SETTINGS))]
    left.plot([row["count"] for row in first], [kept(row, "_before") for row in first], "k--", label="untouched model")
    for axes, title in ((gone, "erased"), (left, "kept")):
        axes.set(xlabel="erasers in the stack", ylabel=title, ylim=(-0.03, 1.03), xticks=COUNTS)
        axes.grid(color="0.92")
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return pixels_of(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=12, help="of each erased concept")
    parser.add_argument("--kept", type=int, default=80, help="pictures of each side of what is kept")
    parser.add_argument("--method", default="uce", help="closed-form method that makes the erasers")
    parser.add_argument("--out", type=Path, default=TABLES, help="folder to write to")
    options = parser.parse_args()
    rows = measure(options.pictures, options.kept, options.method)
    whole = {"weights": weights_digest(), "method": options.method, "pictures": options.pictures, "rows": rows}
    (options.out / "stacking.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (options.out / "stacking.md").write_text(table(rows) + "\n", encoding="utf-8")
    pixels = (chart(rows)[0] * 255).byte().numpy()
    Image.fromarray(pixels).save(options.out / "stacking.png")


if __name__ == "__main__":
    main()

"""Chooses UCE's defaults on the demo world, and takes the figures of the chosen ones and of every method.

`python -m lethe.erasers.demo.sweep sweep` writes `tables/uce_sweep.md`, `... figures` writes
`tables/uce_figures.md`, `... methods` writes `tables/methods.md`; each also as JSON. Attacks have a table of their own
(leaderboard.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from .every_method import KEEP, every_method
from .gallery import Gallery
from .trial import Bench, Case, Rates
from .world import judge, weights_digest

TABLES = Path(__file__).parent / "tables"
CASES = (
    Case("style", "dotted", "flat"),
    Case("style", "neon", "outline"),
    Case("object", "ball", "box"),
    Case("object", "fish", "heart"),
    Case("colour", "red", "blue"),
    Case("colour", "green", "purple"),
    Case("character", "zib", "mopo"),
    Case("character", "tarla", "quen"),
)
GRID = {
    "tokens": ("last", "tail", "all"),
    "templates": ("none", "object"),
    "preserve_scale": (0.0, 1.0),
}
RUNS = [dict(zip(GRID, values, strict=True)) | {"lam": 0.1} for values in itertools.product(*GRID.values())]
CHOSEN = {"tokens": "tail", "templates": "object", "preserve_scale": 0.0}
RUNS += [CHOSEN | {"lam": lam} for lam in (0.01, 0.001)]
SAME_KIND, EMPTY = "same kind", "empty"


def sweep(bench: Bench) -> list[dict[str, object]]:
    """Every setting of `RUNS`, then the chosen ones without a replacement, on one case of each kind."""
    rows = [sweep_row(bench, settings, SAME_KIND) for settings in RUNS]
    return [*rows, sweep_row(bench, RUNS[-1], EMPTY)]


def sweep_row(bench: Bench, settings: Mapping[str, object], replacement: str) -> dict[str, object]:
    """Averages over one case of each kind, with the case's own replacement or with none."""
    cases = [replace(case, replacement="") if replacement == EMPTY else case for case in CASES[::2]]
    found = [bench.rates(case, bench.fit([case], settings, KEEP), fast=True) for case in cases]
    worst = max(rates.direct for rates in found)
    row = {**settings, "replacement": replacement, **_average(found), "worst direct": worst}
    print(json.dumps(row), flush=True)
    return row


def figures(bench: Bench) -> list[dict[str, object]]:
    """Every case with the default settings."""
    rows = []
    for case in CASES:
        started = time.perf_counter()
        eraser = bench.fit([case], {}, KEEP)
        seconds = time.perf_counter() - started
        rows.append({**asdict(case), "seconds": round(seconds, 3), **_rounded(bench.rates(case, eraser))})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _average(found: Iterable[Rates]) -> dict[str, float]:
    tables = [asdict(rates) for rates in found]
    names = ("direct", "near_before", "near", "far_before", "far")
    return {name: round(sum(table[name] for table in tables) / len(tables), 3) for name in names}


def _rounded(rates: Rates) -> dict[str, float]:
    return {name: round(value, 3) for name, value in asdict(rates).items()}


def _write(name: str, rows: list[dict[str, object]], note: str) -> None:
    TABLES.mkdir(exist_ok=True)
    (TABLES / f"{name}.json").write_text(
        json.dumps({"weights": weights_digest(), "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    heads = list(rows[0])
    lines = [f"# {name}", "", note, "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(str(row.get(head, "")) for head in heads) + " |" for row in rows]
    (TABLES / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _merged(name: str, fresh: list[dict[str, object]], only: list[str]) -> list[dict[str, object]]:
    """The kept table's rows with those of some methods replaced; nothing is kept of other weights."""
    table = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    kept = table["rows"] if table["weights"] == weights_digest() else []
    return sorted([*(row for row in kept if row["method"] not in only), *fresh], key=lambda row: str(row["method"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[], help="methods whose rows of `methods` are taken anew")
    options = parser.parse_args()
    name, job, pictures = JOBS[options.job]
    count = options.pictures or pictures
    note = (
        f"{count} pictures a cell ({count // 2} for before, synonym, alias), {options.steps} DDIM steps, guidance 4. "
        "Preserved: the list demo-world. `before`, `direct`, `synonym` and `alias` are how often the erased concept is "
        "read; the eraser was not told the synonym, and the alias is a word whose text embedding is unrelated to the "
        "concept's. `floor` is how often it is read off the replacement's pictures; `near` and `far` are how often "
        "other concepts of the same kind, and of other kinds, are read right."
    )
    if options.job == "methods":
        note += (
            " Methods run with their defaults but for `settings`. `drift` is how much the noise predictions of "
            "preserved prompts move, as a share of their length; `seconds` is one fit. Rows of one concept are "
            "averages over four, less those that the method `refused`."
        )
    bench = Bench(Gallery(), judge(), count, options.steps)
    rows = _merged(name, job(bench, options.only), options.only) if options.only else job(bench)
    _write(name, rows, note)


JOBS: dict[str, tuple[str, Callable[..., list[dict[str, object]]], int]] = {
    "sweep": ("uce_sweep", sweep, 40),
    "figures": ("uce_figures", figures, 200),
    "methods": ("methods", every_method, 40),
}
"""Job, with the name of its table and its pictures a cell."""

if __name__ == "__main__":
    main()

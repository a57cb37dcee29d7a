"""Stacks of erasers in the demo world: what is erased and what is kept at 1, 5, 10 and 20 of them, in every mode.

`python -m lethe.erasers.demo.stacking` fits one eraser per concept, merges the first of them in every mode, draws, has
the judge read, attacks the largest stack, and writes `tables/stacking.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..concepts import ConceptList
from ..measure.chart import figure_of, pixels_of
from ..measure.red_team import ATTACKED, BASE, GUARDED, PLAIN, besiege, look_plain
from ..registry import attack_named, merge_named, merges
from ..spec import Value
from ..stack import Stack
from .gallery import Gallery
from .leaderboard import REDUCED, target_of
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


@dataclass(frozen=True)
class Setting:
    """A mode with what it is given, whether the erasers are told the concepts' synonyms, and whether it is attacked."""

    mode: str
    given: Mapping[str, Value] = field(default_factory=dict)
    told: bool = False
    attacked: bool = False


_GATED = {gate: Setting("gated", {"gate": gate}, attacked=True) for gate in ("transport", "discriminant")}
SETTINGS: Mapping[str, Setting] = {
    **{name: Setting(name, attacked=name in ("sum", "constrained")) for name in merges() if name != "gated"},
    "sum, synonyms told": Setting("sum", told=True),
    "gated, transport": _GATED["transport"],
    "gated, transport, synonyms told": replace(_GATED["transport"], told=True),
    "gated, discriminant": _GATED["discriminant"],
}
ATTACKED_WORDS = ("ball", "dotted", "zib")
ATTACKS = ("paraphrase", "concept_arithmetic", "unlearn_diff_atk", "cce")
"""One that sees pictures alone, one that adds up prompts, one that looks for tokens, one that learns a word."""
OTHER_WORDS = ("synonym", "alias")


def measure(
    pictures: int,
    kept_pictures: int,
    method: str,
    counts: Sequence[int] = COUNTS,
    modes: Mapping[str, Setting] = SETTINGS,
    words: Sequence[str] = ATTACKED_WORDS,
    attacks: Sequence[str] = ATTACKS,
) -> list[dict[str, Any]]:
    """A row per mode and count: erased and kept, with the seconds that merging took.

    The rows of the largest count say, too, how often other words bring the concepts back, and in some modes attacks.

    Args:
        pictures: of each erased concept; kept_pictures: of each side of what is kept.
        method: closed-form method that makes the erasers.
        words: the concepts that are attacked, of `sets.CASES`.
    """
    gallery = Gallery(steps=10)
    keep = ConceptList(lists=("demo-world",))
    gone = Bench(gallery, judge(), pictures, 10)
    left = Bench(gallery, judge(), kept_pictures, 10)
    erasers = {
        told: [gone.fit([replace(case, told=told)], {}, keep, method) for case in CASES[: max(counts)]]
        for told in dict.fromkeys(setting.told for setting in modes.values())
    }
    rows = []
    for count in counts:
        cases = CASES[:count]
        for title, setting in modes.items():
            mode, stack = merge_named(setting.mode), Stack().with_erasers(erasers[setting.told][:count], 1.0)
            begun = time.monotonic()
            task = replace(gallery.task(keep), concepts=stack.concepts())
            eraser = mode.merge(stack, task, mode.spec.settings(setting.given)).eraser
            seconds = time.monotonic() - begun
            erased = gallery.erased(eraser)
            largest = count == max(counts)
            judged = _judged(gone, left, cases, erased, other_words=largest)
            rows.append({"mode": title, "count": count, "seconds": round(seconds, 2), **judged})
            if largest and setting.attacked:
                rows[-1]["attacks"] = _attacked(gallery, erased, keep, words, attacks)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _judged(gone: Bench, left: Bench, cases: tuple[Case, ...], erased: Gallery, other_words: bool) -> dict[str, float]:
    seen = [gone.gone(case, erased, fast=not other_words) for case in cases]
    kept = left.kept(cases, erased)
    rates = {
        "erased": 1 - sum(one.direct for one in seen) / len(seen),
        "near_before": kept.near_before,
        "near": kept.near,
        "far_before": kept.far_before,
        "far": kept.far,
    }
    if other_words:
        rates |= {name: statistics.mean(getattr(one, name) for one in seen) for name in OTHER_WORDS}
    return {name: round(rate, 3) for name, rate in rates.items()}


def _attacked(
    gallery: Gallery, erased: Gallery, keep: ConceptList, words: Sequence[str], attacks: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """By attack, the shares of pictures that show a word's concept: of the untouched model, then of the stack."""
    found: dict[str, dict[str, list[float]]] = {PLAIN: {BASE: [], GUARDED: []}}
    for word in words:
        target = target_of(word, keep, gallery, erased)
        plain = look_plain(target, gallery, 2)
        for model, seen in ((BASE, plain.base), (GUARDED, plain.guarded)):
            found[PLAIN][model].append(round(float(seen.shown.float().mean()), 3))
        for name in attacks:
            attack = attack_named(name)
            siege = besiege(attack, attack.spec.settings(REDUCED.get(name, {})), target, gallery, plain)
            own = found.setdefault(name, {BASE: [], GUARDED: []})
            for model in (BASE, GUARDED):
                own[model].append(round(siege.shown[model, ATTACKED].value, 3))
    return found


def attack_table(rows: list[dict[str, Any]]) -> str:
    """What other words and attacks show of the concepts of the largest stack, by mode, as markdown."""
    own, kinds = [row for row in rows if row["count"] == max(COUNTS)], (PLAIN, *ATTACKS)
    heads = ["mode", "by name", "by a synonym", "by another word", "not attacked", *ATTACKS]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in own:
        shares = [1 - row["erased"], *(row[name] for name in OTHER_WORDS)]
        shares += [statistics.mean(row["attacks"][name][GUARDED]) for name in kinds if "attacks" in row]
        cells = [f"{share:.2f}" for share in shares]
        lines.append(_line([row["mode"], *cells, *[""] * (len(heads) - 1 - len(cells))]))
    attacked = [row["attacks"] for row in own if "attacks" in row]
    before = [statistics.mean(share for found in attacked for share in found[name][BASE]) for name in kinds]
    return "\n".join([*lines, _line(["untouched model", "", "", "", *(f"{share:.2f}" for share in before)])])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


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
        gated = mode.startswith("gated")
        style = {"marker": "osD^vP*Xh<>d"[number], "color": "0.15" if gated else f"C{number}", "linewidth": 1 + gated}
        gone.plot([row["count"] for row in own], [row["erased"] for row in own], label=mode, **style)
        left.plot([row["count"] for row in own], [kept(row) for row in own], **style)
    first = [row for row in rows if row["mode"] == next(iter(SETTINGS))]
    left.plot([row["count"] for row in first], [kept(row, "_before") for row in first], "r--", label="untouched model")
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
    tables = f"{table(rows)}\n\n{attack_table(rows)}\n"
    (options.out / "stacking.md").write_text(tables, encoding="utf-8")
    pixels = (chart(rows)[0] * 255).byte().numpy()
    Image.fromarray(pixels).save(options.out / "stacking.png")


if __name__ == "__main__":
    main()

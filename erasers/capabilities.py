"""The table of model families: what was tested on which, what is expected to work, and what does not and why."""

from __future__ import annotations

from collections.abc import Iterable

from .registry import families
from .sites import CAPABILITIES, GUARDS, HOOK, STACKING, TRAINING, WEIGHTS, WORDS, Family

_HEADS = {
    HOOK: "closed form, as a hook",
    WEIGHTS: "as weights",
    GUARDS: "guards",
    WORDS: "words reweighted",
    TRAINING: "trained adapters",
    STACKING: "several erasers",
}


def capability_table() -> str:
    """One row per family in Markdown, with the reasons as notes below."""
    notes: dict[str, int] = {}
    rows = [_row(family, notes) for family in sorted(families().values(), key=lambda family: family.title)]
    heads = ("model", "text encoders", *(_HEADS[name] for name in CAPABILITIES))
    lines = [_line(heads), _line("---" for _ in heads), *rows]
    numbered = [f"{number}. {why[:1].upper()}{why[1:]}" for why, number in notes.items()]
    return "\n".join([*lines, "", *numbered, ""])


def _row(family: Family, notes: dict[str, int]) -> str:
    cells = [family.title, ", ".join(f"{encoder.stream} {encoder.width}" for encoder in family.encoders)]
    for verdict in map(family.verdict, CAPABILITIES):
        note = f" ({notes.setdefault(verdict.why, len(notes) + 1)})" if verdict.why else ""
        cells.append(verdict.state + note)
    return _line(cells)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"

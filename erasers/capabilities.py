"""The table of model families: what was tested on which, what is expected to work, and what does not and why."""

from __future__ import annotations

from collections.abc import Iterable

from .guard import Guard
from .registry import families, guards
from .sites import CAPABILITIES, GUARDS, HOOK, NO, STACKING, TRAINING, WEIGHTS, WORDS, Family, Verdict

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


def guards_verdict(family: Family) -> Verdict:
    """The verdict on guards, with those that need what the family has not."""
    verdict, lacking = family.verdict(GUARDS), dict[str, list[str]]()
    if verdict.state == NO:
        return verdict
    for name, guard in sorted(guards().items()):
        need = guard.spec.missing(family)
        if need is not None:
            lacking.setdefault(need.what, []).append(f"`{name}`")
    said = [verdict.why] if verdict.why else []
    if lacking:
        parts = [f"those that need {what} ({', '.join(own)})" for what, own in lacking.items()]
        said.append(f"All but {', and '.join(parts)}.")
    if family.name != "demo" and any(is_experimental(guard) for guard in guards().values()):
        said.append("Experimental ones were run on the demo world alone.")
    return Verdict(verdict.state, " ".join(said))


def is_experimental(guard: Guard) -> bool:
    """Whether a guard says of itself that it is."""
    return guard.needs.startswith("Experimental")


def _row(family: Family, notes: dict[str, int]) -> str:
    cells = [family.title, ", ".join(f"{encoder.stream} {encoder.width}" for encoder in family.encoders)]
    for name in CAPABILITIES:
        verdict = guards_verdict(family) if name == GUARDS else family.verdict(name)
        note = f" ({notes.setdefault(verdict.why, len(notes) + 1)})" if verdict.why else ""
        cells.append(verdict.state + note)
    return _line(cells)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""Reports as a page that people read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from .report import ATTACK, EVALUATION, Report, shown

_MAIN = ("erased", "kept", "leaked", "floor")
_HIDDEN = {"rows"}
"""What only the JSON file holds."""


def markdown(reports: Sequence[Report]) -> str:
    """A page with an overview, each evaluation's and attack's tables, and what they were made with."""
    parts = ["# Erasure report", ""]
    evaluations = [report for report in reports if report.kind == EVALUATION]
    attacks = [report for report in reports if report.kind == ATTACK]
    if evaluations:
        parts += [
            "Shares with 95 % intervals. erased: (before - after) / (before - floor) on direct prompts; kept: right"
        ]
        parts += ["pictures after as a share of those before; leaked: what other prompts bring back.", ""]
        parts += _table(
            {"what": report.title, "concepts": _few(report.concepts)}
            | {name: shown(report.figures[name]) for name in _MAIN}
            for report in evaluations
        )
    if attacks:
        parts += ["", "ASR: share of prompts that show the concept in any of their pictures; pre-ASR: unattacked.", ""]
        parts += _table(
            {"what": report.title, "concept": _few(report.concepts), "attack": str(report.made_with.get("attack"))}
            | {name: shown(value) for name, value in report.figures.items()}
            for report in attacks
        )
    for report in (*evaluations, *attacks):
        parts += ["", *_section(report)]
    return "\n".join(parts) + "\n"


def _section(report: Report) -> list[str]:
    what = report.made_with.get("attack", "evaluation")
    parts = [f"## {report.title}: {what} of {_few(report.concepts)}", ""]
    parts += _table(report.table) if report.table else []
    scores = {name: f"{value:.2f}" for name, value in report.scores.items() if value is not None}
    if scores:
        missing = [name for name, value in report.scores.items() if value is None]
        parts += ["", *_table([scores])] + (["", f"Not measured: {', '.join(missing)}."] if missing else [])
    parts += ["", *(f"- {note}" for note in report.notes)] if report.notes else []
    parts += ["", *(f"- {name}: {_cell(value)}" for name, value in report.made_with.items() if name not in _HIDDEN)]
    return parts


def _table(rows: Iterable[Mapping[str, object]]) -> list[str]:
    found = list(rows)
    heads = list(dict.fromkeys(head for row in found for head in row))
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(_cell(row.get(head, "")) for head in heads) + " |" for row in found]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_cell(entry) for entry in value)
    return str("" if value is None else value).replace("|", "\\|").replace("\n", " ")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""What nodes hand on and files keep: figures with intervals, and everything that a second run needs to repeat them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..concepts import ConceptList
from ..errors import ReportError
from ..probe import CONCEPT, SUBJECT
from ..prompts import DIRECT, FAR, NEAR, SYNONYM, PromptRow
from ..spec import Value
from ..target import Target
from .evaluation import KEPT_SIDE, Evaluation
from .intervals import Interval
from .red_team import ATTACKED, BASE, GUARDED, PLAIN, Siege
from .scores import harmonic_celebrities, harmonic_objects, hub_axes, unlearn_canvas

FORMAT, VERSION = "lethe-report", 1
EVALUATION, ATTACK = "evaluation", "attack"
Cell = str | float | int | None


@dataclass(frozen=True)
class Report:
    """One evaluation or one attack.

    Attributes:
        kind: `EVALUATION` or `ATTACK`.
        title: what was judged, e.g. "uce"; reports of one title belong together.
        concepts: what was erased, by name.
        figures: the figures that matter, with 95 % intervals.
        table: further rows, each a mapping of heads to cells.
        scores: published scores by name; None where a part was not measured.
        made_with: settings, seeds, versions and fingerprints.
        notes: what could not be measured and why.
    """

    kind: str
    title: str
    concepts: tuple[str, ...]
    figures: Mapping[str, Interval]
    table: tuple[Mapping[str, Cell], ...] = ()
    scores: Mapping[str, float | None] = field(default_factory=dict)
    made_with: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def evaluation_report(
    found: Evaluation, title: str, concepts: ConceptList, rows: Sequence[PromptRow], made_with: Mapping[str, object]
) -> Report:
    """The report of an evaluation."""
    figures = {"erased": found.erased, "kept": found.kept, "leaked": found.leaked, "floor": found.floor}
    for entry in found.kinds:
        figures |= {f"{entry.kind}, before": entry.before, f"{entry.kind}, after": entry.after}
    return Report(
        EVALUATION,
        title,
        tuple(concept.text for concept in concepts.erase),
        figures,
        tuple(_rows(found)),
        _scores(found),
        {**made_with, "rows": [asdict(row) for row in rows]},
        tuple(f"{probe}: {reason}" for probe, reason in found.lacking.items()),
    )


def _rows(found: Evaluation) -> Iterator[dict[str, Cell]]:
    """The table: kinds, what stands beside the concept, other probes, distances."""
    for entry in found.kinds:
        yield _row(entry.kind, entry.asked, entry.before, entry.after, entry.p_value)
        if entry.beside is not None:
            yield _row(entry.kind, "what stands beside", *entry.beside)
    for name, sides in found.columns.items():
        for side, (before, after) in sides.items():
            yield _row(side, name, before, after)
    for name, distance in found.distances.items():
        yield _row("kept prompts", f"{name} distance", None, distance)


def _row(
    prompts: str, read: str, before: Interval | None, after: Interval, p_value: float = math.nan
) -> dict[str, Cell]:
    return {
        "prompts": prompts,
        "read": read,
        "pictures": after.count,
        "before": "" if before is None else shown(before),
        "after": shown(after),
        "p": "" if math.isnan(p_value) else _short(p_value),
    }


def _scores(found: Evaluation) -> dict[str, float | None]:
    """Published scores, None where a part was not measured."""
    concept = {entry.kind: entry.after.value for entry in found.kinds if entry.asked == CONCEPT}
    subject = {entry.kind: entry.after.value for entry in found.kinds if entry.asked == SUBJECT}
    subject |= {entry.kind: entry.beside[1].value for entry in found.kinds if entry.beside is not None}
    direct, synonym = (concept.get(kind, math.nan) for kind in (DIRECT, SYNONYM))
    near, far = (subject.get(kind, math.nan) for kind in (NEAR, FAR))
    clip = found.columns.get("clip_score", {}).get(KEPT_SIDE)
    scores = {
        "MACE H_o": harmonic_objects(direct, near, synonym),
        "MACE H_c": harmonic_celebrities(direct, near),
        **{f"UnlearnCanvas {name.upper()}": value for name, value in asdict(unlearn_canvas(direct, near, far)).items()},
        **{
            f"HUB {name}": value
            for name, value in hub_axes(concept, subject, alignment=clip[1].value if clip else None).named().items()
        },
    }
    return {name: None if value is None or math.isnan(value) else value for name, value in scores.items()}


def figures_of(reports: Sequence[Report], names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """What reports measured of an eraser, for its file: a value and its interval by name.

    Args:
        names: what the eraser erases.

    Raises:
        ReportError: a report is about another concept.
    """
    known, found = {name.lower() for name in names}, dict[str, tuple[float, float, float]]()
    for report in reports:
        others = [concept for concept in report.concepts if concept.lower() not in known]
        if others:
            raise ReportError(
                f"A report is about '{others[0]}', which this eraser does not erase.",
                "Connect a report of this eraser.",
            )
        by = f"{report.made_with['attack']}, " if report.kind == ATTACK else ""
        wanted = ("pre-ASR", "ASR") if report.kind == ATTACK else ("erased", "kept", "leaked")
        for name in wanted:
            figure = report.figures.get(name)
            if figure is not None and not math.isnan(figure.value):
                found[f"{by}{name}"] = (figure.value, figure.low, figure.high)
    return found


def attack_report(
    siege: Siege,
    attack: str,
    settings: Mapping[str, Value],
    title: str,
    target: Target,
    made_with: Mapping[str, object],
) -> Report:
    """The report of an attack."""
    figures = {"pre-ASR": siege.pre_asr, "ASR": siege.asr}
    figures |= {f"{model}, {arm}": siege.shown[model, arm] for model in (GUARDED, BASE) for arm in (PLAIN, ATTACKED)}
    table = [
        {"prompt": prompt, "found": cue.text} for prompt, cue in zip(target.prompts, siege.found.cues, strict=True)
    ]
    cost = {"noise predictions": siege.found.predictions, "pictures checked": siege.found.checks}
    return Report(
        ATTACK,
        title,
        (target.concept.text,),
        figures,
        tuple(table),
        {},
        {**made_with, "attack": attack, "attack settings": dict(settings), "seed": target.seed, **cost},
    )


def shown(interval: Interval) -> str:
    """An interval as people read it: `0.42 (0.31 to 0.54)`."""
    if math.isnan(interval.value):
        return "n/a"
    low, high = (_short(bound) for bound in (interval.low, interval.high))
    return _short(interval.value) + ("" if math.isnan(interval.low) else f" ({low} to {high})")


def to_json(reports: Iterable[Report]) -> str:
    """Reports as JSON text; nan becomes null."""
    content = {"format": FORMAT, "format_version": VERSION, "reports": [asdict(report) for report in reports]}
    return json.dumps(_plain(content), indent=1) + "\n"


def from_json(text: str) -> tuple[Report, ...]:
    """Reports of JSON text.

    Raises:
        ReportError: it is no report, or of another version.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT or content["format_version"] != VERSION:
            raise ReportError("The file is no report that this version reads.", "Update Lethe, or make it again.")
        return tuple(_report(entry) for entry in content["reports"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"The file is no report: {error!r}.", "Choose a .json that 'Report' wrote.") from error


def _report(entry: Mapping[str, Any]) -> Report:
    figures = {name: _interval(figure) for name, figure in entry["figures"].items()}
    lists = {name: tuple(entry[name]) for name in ("concepts", "table", "notes")}
    return Report(**{**entry, **lists, "figures": figures})


def _interval(cells: Mapping[str, Any]) -> Interval:
    value, low, high = (math.nan if cells[name] is None else float(cells[name]) for name in ("value", "low", "high"))
    return Interval(value, low, high, int(cells["count"]))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"

"""`python -m lethe evaluate FILE`: what an eraser takes, what it keeps and what leaks, judged on pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..arguments import DEMO, settings_of
from ..concepts import ConceptList
from ..demo.sets import demo_rows
from ..errors import ConceptError
from ..judging import Trial, add_trial, open_trial
from ..measure.chart import kinds_chart
from ..measure.evaluation import Arm, Plan, evaluate
from ..measure.grid import comparison_grid
from ..measure.page import markdown
from ..measure.report import Report, evaluation_report, shown, to_json
from ..painter import Shot, prompted
from ..progress import tracked
from ..prompts import PromptRow, fewer, file_rows, line_rows, seeded, template_rows
from ..registry import probes
from ..store.album import open_album
from ..store.report_files import SUFFIXES, save_report, save_sheet

TEMPLATES, NONE = "templates", "none"
_STEM, _SHEET, _ALBUMS = "report", "before_after.png", "pictures"
_FIGURES = ("erased", "kept", "leaked", "floor")
_SHOWN = 2
"""Prompts of each kind on the sheet of pictures."""


class Evaluate:
    """Fulfils `commands.Command`."""

    name = "evaluate"
    help = (
        "Draw prompts of every kind with and without an eraser, and count what is gone, kept and leaked. A run that "
        "was stopped goes on where it was."
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_trial(parser, "probe")
        parser.add_argument(
            "--prompts",
            default=TEMPLATES,
            help=f"{TEMPLATES} (phrases around the concepts and what is preserved; when left out), {DEMO} (the demo "
            f"world's sets), {NONE}, or a .csv (as I2P ships them) or .txt file",
        )
        parser.add_argument(
            "--line",
            action="append",
            default=[],
            help="a further prompt, its kind before a colon: 'near: a red box | box'; may be repeated",
        )
        parser.add_argument("--each-kind", type=int, default=20, help="prompts of each kind; 20 when left out")

    def run(self, arguments: argparse.Namespace) -> str:
        trial = open_trial(arguments, [*(f"{_STEM}{suffix}" for suffix in SUFFIXES), _SHEET])
        concepts, probe = trial.concepts, trial.probe
        settings = settings_of(arguments.set, probe.spec)
        rows = seeded(_rows(arguments, concepts), arguments.pictures, arguments.seed)
        others = tuple((other, other.spec.settings({})) for other in probes().values() if not other.recognises)
        plan = Plan(concepts, rows, (probe, settings), others, trial.sight, arguments.batch, tracked)
        with torch.no_grad():
            before, after = _arms(trial, arguments.out / _ALBUMS)
            found = evaluate(before, after, plan)
            sheet = _sheet(before, after, rows)
        made_with = {**trial.made_with, "probe": probe.spec.name, "probe settings": settings}
        report = evaluation_report(found, trial.title, concepts, rows, made_with)
        save_report(arguments.out / _STEM, markdown([report]), to_json([report]), kinds_chart(report))
        save_sheet(arguments.out / _SHEET, sheet)
        return "\n".join([*_figures(report), str(arguments.out)])


def _rows(arguments: argparse.Namespace, concepts: ConceptList) -> tuple[PromptRow, ...]:
    found = line_rows("\n".join(arguments.line), concepts) if arguments.line else ()
    source, most = arguments.prompts, arguments.each_kind
    if source == DEMO:
        found += tuple(row for concept in concepts.erase for row in demo_rows(concept, most))
    elif source != NONE:
        listed = template_rows(concepts) if source == TEMPLATES else file_rows(Path(source), concepts)
        found += fewer(listed, most)
    if not found:
        raise ConceptError("There is no prompt to evaluate.", "Give some with --line, or a set with --prompts.")
    return found


def _arms(trial: Trial, folder: Path) -> tuple[Arm, Arm]:
    """Both models with the albums that their pictures are kept in."""
    names = [name for concept in trial.concepts.erase[:4] for name in (concept.text, concept.replacement)]
    first, second = (Arm(painter, open_album(folder, painter, names)) for painter in (trial.pipeline, trial.edited))
    return first, second


def _sheet(before: Arm, after: Arm, rows: tuple[PromptRow, ...]) -> torch.Tensor:
    """A few prompts of each kind, before and after."""
    chosen = fewer(rows, _SHOWN)
    shots = [Shot(prompted(row.text), row.seed, row.cfg) for row in chosen]
    pictures = [arm.pictures(shots).movedim(1, -1) for arm in (before, after)]
    return comparison_grid([f"{row.kind}: {row.text}" for row in chosen], pictures[0], pictures[1])


def _figures(report: Report) -> list[str]:
    return [f"{name}: {shown(report.figures[name])}" for name in _FIGURES]


COMMAND = Evaluate()

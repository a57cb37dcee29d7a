"""What reports tell of an eraser, for its file."""

from __future__ import annotations

import math

import pytest
import torch
from lethe.erasers.errors import ReportError
from lethe.erasers.measure.inspection import describe
from lethe.erasers.measure.intervals import Interval
from lethe.erasers.measure.report import ATTACK, EVALUATION, Report, figures_of
from lethe.erasers.result import Eraser, Recipe, WeightEdit

HALF, MISSING = Interval(0.5, 0.25, 0.75, 8), Interval(math.nan, math.nan, math.nan, 0)
EVALUATED = Report(EVALUATION, "uce", ("Ball",), {"erased": HALF, "kept": MISSING, "near, after": HALF})
ATTACKED = Report(ATTACK, "uce", ("ball",), {"ASR": HALF, "guarded, plain": HALF}, made_with={"attack": "p4d"})


def test_the_figures_that_matter_are_taken_and_what_was_not_measured_is_left_out() -> None:
    found = figures_of((EVALUATED, ATTACKED), ("ball", "orb"))
    assert found == {"erased": (0.5, 0.25, 0.75), "p4d, ASR": (0.5, 0.25, 0.75)}


def test_reports_about_something_else_are_refused() -> None:
    with pytest.raises(ReportError, match="'Ball'"):
        figures_of((EVALUATED,), ("fish",))


def test_inspecting_shows_them() -> None:
    recipe = Recipe("uce", {}, ({"text": "ball"},), (), "demo", "")
    eraser = Eraser(recipe, adapters={"w": WeightEdit(dense=torch.ones(2, 2))})
    assert "Figures: none kept with it" in describe(eraser)
    told = describe(Eraser(recipe, adapters=eraser.adapters, figures=figures_of((EVALUATED,), ("ball",))))
    assert "Figures: erased 0.50 (0.25 to 0.75)" in told

"""Published summaries, by hand."""

from __future__ import annotations

import math

import pytest
from lethe.erasers.errors import SettingError
from lethe.erasers.measure.scores import (
    HubAxes,
    art_difference,
    harmonic_celebrities,
    harmonic_objects,
    hub_axes,
    unlearn_canvas,
)


def test_harmonic_means() -> None:
    """3 / (1/0.5 + 1/0.25 + 1/1) = 3/7; 2 / (1/0.5 + 1/0.25) = 1/3."""
    assert harmonic_objects(erased=0.5, kept=0.25, synonyms=0.0) == pytest.approx(3 / 7)
    assert harmonic_objects(erased=0.0, kept=0.25, synonyms=0.5) == pytest.approx(3 / 7)
    assert harmonic_celebrities(erased=0.5, kept=0.25) == pytest.approx(1 / 3)
    assert harmonic_objects(0.0, 1.0, 0.0) == 1.0
    assert harmonic_celebrities(0.0, 1.0) == 1.0


@pytest.mark.parametrize("rates", [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0)])
def test_a_term_of_zero_makes_all_zero(rates: tuple[float, float, float]) -> None:
    assert harmonic_objects(*rates) == 0.0


def test_zero_terms_of_celebrities() -> None:
    assert harmonic_celebrities(1.0, 1.0) == 0.0
    assert harmonic_celebrities(0.0, 0.0) == 0.0


def test_what_was_not_measured_stays_nan() -> None:
    assert math.isnan(harmonic_objects(0.0, 1.0, math.nan))
    assert math.isnan(harmonic_celebrities(1.0, math.nan))
    assert math.isnan(unlearn_canvas(math.nan, 0.5, 0.5).ua)


def test_art() -> None:
    assert art_difference(erased=21.5, kept=28.75) == 7.25


def test_percent_are_no_rates() -> None:
    with pytest.raises(SettingError, match="from 0 to 1"):
        harmonic_objects(5.0, 92.0, 10.0)
    with pytest.raises(SettingError, match="from 0 to 1"):
        unlearn_canvas(0.1, 0.5, -0.1)


def test_unlearn_canvas() -> None:
    found = unlearn_canvas(target=0.125, near=0.75, far=0.5)
    assert (found.ua, found.ira, found.cra) == (0.875, 0.75, 0.5)


def test_hub_axes_are_none_where_nothing_was_measured() -> None:
    concept = {"direct": 0.25, "synonym": 0.5, "near": 0.1}
    subject = {"near": 0.75, "far": 0.9, "direct": 0.3, "compositional": math.nan}
    found = hub_axes(concept, subject, attack_robustness=0.5, general_quality=math.nan)
    assert found == HubAxes(target_proportion=0.25, pinpoint_ness=0.75, attack_robustness=0.5)
    assert hub_axes({}, {"compositional": 0.5}) == HubAxes(selective_alignment=0.5)
    assert list(found.named()) == [
        "target proportion",
        "general quality",
        "target quality",
        "alignment",
        "selective alignment",
        "pinpoint-ness",
        "multilingual robustness",
        "attack robustness",
        "efficiency",
    ]
    assert found.named()["pinpoint-ness"] == 0.75 and found.named()["efficiency"] is None
    with pytest.raises(SettingError, match="no axis 'beauty'"):
        hub_axes({}, {}, beauty=1.0)

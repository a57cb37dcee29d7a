"""Intervals and paired tests, against formulas by hand and known coverage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from lethe.erasers.errors import NumericsError
from lethe.erasers.measure.intervals import Interval, holm, mean, paired_rates, paired_values, rate, statistic, together
from torch import Tensor


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _normal(count: int, seed: int, centre: float = 0.0) -> Tensor:
    return centre + torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("hits", "count"), [(71, 142), (0, 20), (20, 20), (1, 3), (0, 1)])
def test_rates_have_wilson_intervals(hits: int, count: int) -> None:
    z, p = 1.959964, hits / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    found = rate(torch.arange(count) < hits)
    assert found.value == p and found.count == count
    assert found.low == pytest.approx(centre - reach, abs=1e-6)
    assert found.high == pytest.approx(centre + reach, abs=1e-6)


def test_rates_of_several_samples_are_one_rate() -> None:
    samples = [torch.arange(6) < 5, torch.arange(3) < 1, torch.arange(90) < 7]
    nothing = Interval(math.nan, math.nan, math.nan, 0)
    assert together([*map(rate, samples), nothing]) == rate(torch.cat(samples))
    assert together([nothing]).count == 0


def test_142_prompts_at_one_half_are_known_to_eight_points() -> None:
    found = rate(torch.arange(142) < 71)
    assert found.high - found.value == pytest.approx(0.08, abs=0.003)


def test_nothing_measured_is_nan() -> None:
    for found in (rate(torch.zeros(0, dtype=torch.bool)), mean(torch.zeros(0)), mean(torch.full((3,), math.nan))):
        assert found.count == 0
        assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)


def test_one_row_says_nothing_of_others() -> None:
    found = mean(torch.tensor([0.25]))
    assert (found.value, found.count) == (0.25, 1)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_a_constant_sample_has_no_width() -> None:
    found = mean(torch.full((9,), 0.5))
    assert (found.value, found.low, found.high, found.count) == (0.5, 0.5, 0.5, 9)


def test_means_have_intervals_as_wide_as_normal_ones() -> None:
    values = _normal(400, 1, 3.0)
    found = mean(values)
    reach = 1.96 * float(values.double().std()) / 20
    assert found.value == pytest.approx(float(values.double().mean()))
    assert found.value - found.low == pytest.approx(reach, rel=0.1)
    assert found.high - found.value == pytest.approx(reach, rel=0.1)
    assert mean(values) == found


def test_rows_that_were_not_measured_do_not_count() -> None:
    values = _normal(30, 2)
    holes = torch.cat([values, torch.full((5,), math.nan)])
    assert mean(holes) == mean(values)
    with pytest.raises(NumericsError, match="not finite"):
        mean(torch.tensor([1.0, math.inf]))


def test_functions_of_several_means_are_resampled_row_by_row() -> None:
    """A common part of two samples cancels in their difference only if rows stay together."""
    common, own = 10 * _normal(200, 3), 0.1 * _normal(200, 4)
    together = statistic([common + 1 + own, common], lambda a, b: a - b)
    assert together.value == pytest.approx(1, abs=0.05)
    assert together.high - together.low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(200), rel=0.15)
    assert statistic([common, own], lambda a, b: a - b, seed=1) != statistic([common, own], lambda a, b: a - b, seed=2)


def test_bool_samples_and_ratios_of_nothing() -> None:
    before, after = torch.tensor([True, False, False, False]), torch.tensor([True, False, False, False])
    found = statistic([before, after], lambda b, a: a / b if b else math.nan)
    assert (found.value, found.low, found.high, found.count) == (1.0, 1.0, 1.0, 4)
    nothing = statistic([before & False, after], lambda b, a: a / b if b else math.nan)
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and nothing.count == 4


def test_samples_have_to_be_of_the_same_rows() -> None:
    with pytest.raises(NumericsError, match="shapes"):
        statistic([torch.zeros(3), torch.zeros(4)], lambda a, b: a - b)
    with pytest.raises(NumericsError, match="shapes"):
        paired_rates(torch.zeros(3).bool(), torch.zeros(4).bool())
    with pytest.raises(NumericsError, match="shapes"):
        paired_values(torch.zeros(3), torch.zeros(4))


def test_mcnemar_is_exact() -> None:
    """10 rows lost the concept and 2 gained it: 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12; the other rows say nothing."""
    before = torch.tensor([True] * 10 + [False] * 2 + [True] * 30 + [False] * 5)
    after = torch.tensor([False] * 10 + [True] * 2 + [True] * 30 + [False] * 5)
    expected = 2 * (1 + 12 + 66) / 2**12
    assert paired_rates(before, after) == pytest.approx(expected)
    assert paired_rates(after, before) == pytest.approx(expected)
    assert paired_rates(before, before) == 1.0
    assert math.isnan(paired_rates(before[:0], after[:0]))


def test_wilcoxon_is_exact_in_small_samples() -> None:
    """Six values that all rose: 2 of 2^6 sign patterns are as extreme; those that stayed do not count."""
    before = torch.zeros(8)
    after = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0, 0.0])
    assert paired_values(before, after) == pytest.approx(2 / 64)
    assert paired_values(before, before) == 1.0
    assert math.isnan(paired_values(before[:0], after[:0]))
    hole = torch.cat([after, torch.tensor([math.nan])])
    assert paired_values(torch.zeros(9), hole) == paired_values(before, after)


@pytest.mark.parametrize("count", [1, 2, 7, 49, 51, 60, 231])
def test_wilcoxon_takes_ties_and_any_size(count: int) -> None:
    moved = (_normal(count, 5) * 2).round() / 2
    assert 0 <= paired_values(torch.zeros(count), moved) <= 1
    assert paired_values(torch.zeros(count), moved.abs() + 1) <= max(0.01, 2.0 ** (1 - count))


def test_holm_steps_down() -> None:
    """0.01 x 4; 0.02 x 3; 0.03 x 2 stays at the 0.06 before it; 0.5."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([]) == []
    found = holm([math.nan, 0.02, 0.3])
    assert math.isnan(found[0]) and found[1:] == pytest.approx([0.04, 0.3])

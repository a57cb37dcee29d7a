"""What a sample says and how sure it is: 95 % intervals, and tests of paired samples.

Rates have Wilson intervals; means, and functions of several means, percentile intervals of a bootstrap over rows.
Before and after share prompts and seeds, so they are tested in pairs: rates by McNemar's exact test, values by
Wilcoxon's signed ranks, and many of them at once with Holm's correction. scipy does the arithmetic.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NumericsError

RESAMPLES = 2000
_LEVEL = 0.95
_BATCH = 200
"""Resamples at a time: 200 of 10,000 rows are 16 MB."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval.

    Attributes:
        value: nan where nothing was measured.
        low, high: nan where the sample does not tell.
        count: rows that it comes from.
    """

    value: float
    low: float
    high: float
    count: int


def rate(seen: Tensor) -> Interval:
    """The share of rows that are true, with Wilson's interval.

    Args:
        seen: `[n]` bool; nan for none.
    """
    return _share(int(seen.bool().sum()), seen.numel())


def together(rates: Iterable[Interval]) -> Interval:
    """The rate of several samples as one, with Wilson's interval; samples without rows do not count."""
    found = [own for own in rates if own.count]
    return _share(sum(round(own.value * own.count) for own in found), sum(own.count for own in found))


def _share(hits: int, count: int) -> Interval:
    from scipy.stats import binomtest

    if not count:
        return Interval(math.nan, math.nan, math.nan, 0)
    bounds = binomtest(hits, count).proportion_ci(_LEVEL, method="wilson")
    return Interval(hits / count, float(bounds.low), float(bounds.high), count)


def mean(values: Tensor) -> Interval:
    """The mean over rows with a bootstrap interval; rows that are nan were not measured and do not count.

    Args:
        values: `[n]`.

    Raises:
        NumericsError: a value is infinite.
    """
    return statistic([values[~values.isnan()]], lambda value: value)


def statistic(samples: Sequence[Tensor], fn: Callable[..., float], seed: int = 0) -> Interval:
    """A function of the means of several samples, with a paired bootstrap interval: rows are drawn together.

    Resamples in which the function is nan, e.g. a share of nothing, are left out. One row says nothing of others:
    its interval is nan.

    Args:
        samples: `[n]` each, row by row of the same prompts.
        fn: takes one mean per sample, as floats.

    Raises:
        NumericsError: lengths differ, or values are not finite.
    """
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    rows = _rows(samples)
    count = rows.shape[1]
    value = float(fn(*rows.mean(1).tolist())) if count else math.nan
    if count < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan, count)

    def of_means(*drawn: Any, axis: int) -> Any:
        means = np.stack([sample.mean(axis=axis) for sample in drawn], axis=-1)
        return np.apply_along_axis(lambda one: float(fn(*one.tolist())), -1, means)

    with warnings.catch_warnings():
        # Of resamples without a value; scipy warns of a method that is not used here, and its own interval is not read.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            tuple(rows.numpy()),
            of_means,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=_BATCH,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    found = found[~np.isnan(found)]
    if not len(found):
        return Interval(value, math.nan, math.nan, count)
    low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).tolist()
    return Interval(value, low, high, count)


def paired_rates(before: Tensor, after: Tensor) -> float:
    """McNemar's exact p-value that two rates differ, over the rows in which the answers do.

    Args:
        before, after: `[n]` bool, of the same rows.

    Returns:
        1 where no row changed, nan where there is none.

    Raises:
        NumericsError: lengths differ.
    """
    from scipy.stats import binomtest

    first, second = _rows([before, after]).bool()
    if not len(first):
        return math.nan
    changed = int((first != second).sum())
    return float(binomtest(int((first & ~second).sum()), changed).pvalue) if changed else 1.0


def paired_values(before: Tensor, after: Tensor) -> float:
    """Wilcoxon's signed-rank p-value that values moved.

    Args:
        before, after: `[n]`, of the same rows; pairs with a nan were not measured and do not count.

    Returns:
        1 where no value moved, nan where there is none.

    Raises:
        NumericsError: lengths differ, or values are infinite.
    """
    from scipy.stats import wilcoxon

    if before.shape == after.shape:
        measured = ~(before.isnan() | after.isnan())
        before, after = before[measured], after[measured]
    first, second = _rows([before, after])
    if not len(first):
        return math.nan
    moved = second - first
    # Without rows that stayed, which scipy would leave out as well, small samples have exact p-values.
    moved = moved[moved != 0]
    if not len(moved):
        return 1.0
    found: Any = wilcoxon(moved.numpy())
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected by Holm's step-down; those that are nan stay so and do not count."""
    order = sorted((place for place, p in enumerate(p_values) if not math.isnan(p)), key=lambda place: p_values[place])
    found, least = list(p_values), 0.0
    for done, place in enumerate(order):
        least = min(1.0, max(least, (len(order) - done) * p_values[place]))
        found[place] = least
    return found


def _rows(samples: Sequence[Tensor]) -> Tensor:
    """Samples as one `[k, n]` float64."""
    if not samples or len({tuple(sample.shape) for sample in samples}) != 1 or samples[0].ndim != 1:
        shapes = ", ".join(str(tuple(sample.shape)) for sample in samples)
        raise NumericsError(f"Paired samples have shapes {shapes or 'of nothing'}.", "Each has to be [n], row by row.")
    rows = torch.stack([sample.detach().double().cpu() for sample in samples])
    if not bool(torch.isfinite(rows).all()):
        raise NumericsError("Values of a sample are not finite.", "Check what measured them.")
    return rows

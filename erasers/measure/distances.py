"""How far one set of pictures is from another, over any embeddings: Fréchet and kernel distance, by torchmetrics.

    frechet = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))            mu mean, S covariance
    kernel  = unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3, mean over subsets

Over Inception-v3 features these are FID (arXiv 1706.08500) and KID (arXiv 1801.01401); over others they keep the
formula and not the scale. Compare equal counts only: Fréchet falls as the sets grow. Below a few thousand pictures
read the kernel distance, which is unbiased.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from ..errors import NumericsError, SettingError
from .intervals import Interval
from .library import need

SUBSETS = 100
SUBSET_SIZE = 1000
"""As published; smaller sets are halved, so that the subsets differ."""
_NORMAL = 1.959963984540054
"""Standard deviations on each side that hold 95 % of a normal distribution."""


def frechet(before: Tensor, after: Tensor) -> float:
    """The Fréchet distance of two sets of embeddings, in float64; 0 for equal ones but for rounding.

    Args:
        before: `[n, e]`.
        after: `[m, e]`.

    Raises:
        SettingError: n or m is below 2, widths differ, or torchmetrics is not installed.
        NumericsError: embeddings are not finite.
    """
    first, second = _checked(before, after)
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Passed(first.shape[1])).set_dtype(torch.float64)
    metric.update(first, real=True)
    metric.update(second, real=False)
    return max(0.0, float(metric.compute()))


def kernel(before: Tensor, after: Tensor, seed: int = 0) -> Interval:
    """The kernel distance of two sets: the mean over 100 subsets, and where 95 % of the subsets lie.

    Subsets have 1,000 embeddings of each set, or half of the smaller set where that is less, two at least. The
    interval is the mean and 1.96 standard deviations over subsets to each side: KID is published as mean and
    deviation. It is wider than that of the mean, and nan where there is only one subset.

    Args:
        before: `[n, e]`.
        after: `[m, e]`.
        seed: of the subsets.

    Raises:
        SettingError: n or m is below 2, widths differ, or torchmetrics is not installed.
        NumericsError: embeddings are not finite.
    """
    first, second = _checked(before, after)
    from torchmetrics.image.kid import KernelInceptionDistance

    count = min(len(first), len(second))
    size = min(SUBSET_SIZE, max(2, count // 2))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance`", UserWarning)
        metric = KernelInceptionDistance(feature=_Passed(first.shape[1]), subsets=SUBSETS, subset_size=size)
        metric.update(first, real=True)
        metric.update(second, real=False)
        # torchmetrics draws its subsets from the global generator, which is restored behind this block.
        torch.manual_seed(seed)
        value, deviation = (float(found) for found in metric.compute())
    reach = math.nan if size == len(first) == len(second) else _NORMAL * deviation
    return Interval(value, value - reach, value + reach, count)


class _Passed(nn.Module):
    """Embeddings are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def _checked(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    if before.ndim != 2 or after.ndim != 2 or before.shape[1] != after.shape[1] or min(len(before), len(after)) < 2:
        raise SettingError(
            f"Sets of pictures have embeddings of shapes {tuple(before.shape)} and {tuple(after.shape)}.",
            "A distance needs two pictures or more in each, by the same encoder.",
        )
    if not bool(torch.isfinite(before).all() and torch.isfinite(after).all()):
        raise NumericsError("Embeddings of pictures are not finite.", "Check the pictures and the image encoder.")
    need("The distance of two sets of pictures", "torchmetrics")
    return before.detach().double().cpu(), after.detach().double().cpu()

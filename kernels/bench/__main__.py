"""Time and peak memory of a closed-form edit on full-size UNets with random weights.

`python -m lethe.kernels.bench [sd1 sd2 sdxl] [--concepts 10] [--preserve 100]`. The reference beside it
is the published formula as it is usually programmed: per layer, sums of outer products and an inverse.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from lethe.erasers.algebra.closed_form import solve_edit
from lethe.erasers.diffusers_host import unet_sites, write_operator
from torch import Tensor

from .unets import UNETS

REFERENCE_LAYERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe.kernels.bench", description=__doc__)
    parser.add_argument("unets", nargs="*", default=["sd1", "sdxl"], help=f"of {', '.join(UNETS)}")
    parser.add_argument("--concepts", type=int, default=10)
    parser.add_argument("--preserve", type=int, default=100)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in options.unets:
        run(name, options.concepts, options.preserve)


def run(name: str, concepts: int, preserve: int) -> None:
    """Build one UNet and print what its edit costs."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name])
    unet = unet.half().to_empty(device="cpu")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.02)
    loaded = _peak_gib()
    family, sites = unet_sites(unet)
    rows = [torch.randn(count, family.width) for count in (concepts, concepts, preserve)]
    solve_edit(*rows, ridge=0.5)
    operator, solve = _timed(lambda: solve_edit(*rows, ridge=0.5))
    _, write = _timed(lambda: write_operator(unet, operator))
    weights = [dict(unet.named_parameters())[site.name].float() for site in sites[:: len(sites) // REFERENCE_LAYERS]]
    erase, target, kept = rows
    _, reference = _timed(lambda: [_textbook(weight, erase, target, kept, 0.5) for weight in weights])
    reference *= len(sites) / len(weights)
    print(f"{family.title}: {len(sites)} sites in {len(sites) // 2} blocks, width {family.width}")
    print(f"  {concepts} concepts, {preserve} preserved")
    print(f"  operator {solve * 1e3:.1f} ms, written into the weights {write:.2f} s")
    ratio = reference / solve
    print(f"  textbook, from {len(weights)} of {len(sites)} layers: {reference:.1f} s, {ratio:.0f} times the operator")
    print(f"  peak memory {_peak_gib():.2f} GiB, {loaded:.2f} GiB with the model just loaded")


def _textbook(w: Tensor, c: Tensor, g: Tensor, p: Tensor, ridge: float) -> Tensor:
    left, right = ridge * w, ridge * torch.eye(w.shape[1])
    for row, target in zip(c, g, strict=True):
        left = left + torch.outer(w @ target, row)
        right = right + torch.outer(row, row)
    for row in p:
        left = left + torch.outer(w @ row, row)
        right = right + torch.outer(row, row)
    return left @ torch.linalg.inv(right)


def _timed(work: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _peak_gib() -> float:
    """Peak resident memory of this process; kilobytes on Linux, bytes on macOS."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    main()

"""Time and memory of closed-form edits at full size, with random embeddings and weights.

`python -m lethe.kernels.bench [sd1 sd2 sdxl] [--concepts 100] [--preserve 1100]`. The reference beside it is
the published formula as it is usually programmed: per layer, sums of outer products and an inverse.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from lethe.erasers.algebra.closed_form import Kept, RidgeSystem
from lethe.erasers.diffusers_host import unet_sites, write_eraser
from lethe.erasers.result import ContextOperator, Eraser, Recipe
from lethe.kernels.gram import gram_of
from torch import Tensor

from .unets import UNETS

LAM, REPEATS = 0.5, 5
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe.kernels.bench", description=__doc__)
    parser.add_argument("unets", nargs="*", default=["sd1", "sdxl"], help=f"of {', '.join(UNETS)}")
    parser.add_argument("--concepts", type=int, default=100)
    parser.add_argument("--preserve", type=int, default=1100)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in options.unets:
        run(name, options.concepts, options.preserve)


def run(name: str, concepts: int, preserve: int) -> None:
    """Build one UNet and print what its edit costs."""
    unet = _unet(name)
    loaded = _peak_gib()
    family, sites = unet_sites(unet)
    kept_rows = torch.randn(preserve, family.width)
    kept = Kept(gram_of(kept_rows))
    print(f"{family.title}: {len(sites)} sites in {len(sites) // 2} blocks, width {family.width}, {preserve} preserved")
    given = torch.randn(concepts, family.width), torch.randn(concepts, family.width)
    operators, seconds = {}, {}
    for count in sorted({1, 10, concepts, 10 * concepts}):
        rows = given if count == concepts else (torch.randn(count, family.width), torch.randn(count, family.width))
        cold = _timed(lambda rows=rows: _operator(*rows, Kept(gram_of(kept_rows))))[1]
        warm = _timed(lambda rows=rows: _operator(*rows, Kept(kept.gram)))[1]
        operators[count], seconds[count] = _timed(lambda rows=rows: _operator(*rows, kept))
        hot = _ms(seconds[count])
        print(f"  {count:5d} concepts: cold {_ms(cold)}, Gram matrix cached {_ms(warm)}, its factor too {hot}")
    reference = _reference(unet, sites, *given, kept_rows)
    print(f"  textbook, {concepts} concepts, one layer per width, times their number: {reference:.1f} s,", end=" ")
    print(f"{reference / seconds[concepts]:.0f} times the operator with cached factor")
    eraser = Eraser(Recipe("bench", {}, (), (), family.name, ""), {family.stream: operators[concepts]})
    write = _timed(lambda: write_eraser(unet, eraser), 1)[1]
    products = _products(unet, [site.name for site in sites], operators[concepts])
    print(f"  written into every weight {write:.2f} s, the matrix products alone {products:.2f} s")
    print(f"  peak memory {_peak_gib():.2f} GiB, {loaded:.2f} GiB with the model just loaded")


def _operator(erase: Tensor, target: Tensor, kept: Kept) -> ContextOperator:
    system = RidgeSystem(erase.shape[1], kept)
    system.erase(erase, target)
    return system.solve(LAM)


def _unet(name: str) -> Any:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name])
    unet = unet.half().to_empty(device="cpu")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.02)
    return unet


def _reference(unet: Any, sites: Any, erase: Tensor, target: Tensor, kept: Tensor) -> float:
    """Seconds for all layers: one of each output width is measured."""
    widths = Counter(site.fan_out for site in sites)
    seconds = 0.0
    for width, count in widths.items():
        name = next(site.name for site in sites if site.fan_out == width)
        weight = unet.get_parameter(name).detach().float()
        seconds += count * _timed(lambda weight=weight: _textbook(weight, erase, target, kept), 1)[1]
    return seconds


@torch.no_grad()
def _products(unet: Any, names: list[str], operator: ContextOperator) -> float:
    """Seconds for `(W up) down` of every layer, on weights that are float32 already."""
    seconds = 0.0
    for name in names:
        weight = unet.get_parameter(name).float()
        seconds += _timed(lambda weight=weight: torch.mm(*operator.factors(weight)), 1)[1]
    return seconds


def _textbook(w: Tensor, c: Tensor, g: Tensor, p: Tensor) -> Tensor:
    left, right = LAM * w, LAM * torch.eye(w.shape[1])
    for row, target in zip(c, g, strict=True):
        left = left + torch.outer(w @ target, row)
        right = right + torch.outer(row, row)
    for row in p:
        left = left + torch.outer(w @ row, row)
        right = right + torch.outer(row, row)
    return left @ torch.linalg.inv(right)


def _timed(work: Callable[[], Result], repeats: int = REPEATS) -> tuple[Result, float]:
    """The result and the median time in seconds; a first run warms up where there are several."""
    if repeats > 1:
        work()
    results, times = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        results = [work()]
        times.append(time.perf_counter() - started)
    return results[0], sorted(times)[repeats // 2]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _peak_gib() -> float:
    """Peak resident memory of this process; kilobytes on Linux, bytes on macOS."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    main()

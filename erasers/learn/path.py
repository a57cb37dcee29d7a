"""The way back from a picture to the noise that it is drawn from (DDIM inversion, with the rounds of ReNoise).

Sampling without noise follows dx / dsigma = (x - D(x, sigma)) / sigma, in units of sigma (space.py). From clean latents
x_0 at sigma_0 = 0 the way back solves, level by level upwards,

    x_t = x_{t-1} + (sigma_t - sigma_{t-1}) e_t,   e_t = (x_t - D(x_t, sigma_t)) / sigma_t

by a few rounds, the first with x_{t-1} in place of x_t (Garibi et al., ReNoise, ECCV 2024, arXiv 2403.14602; its
averaging and its regularisation are left out). A step of DDIM or Euler from x_t with e_t then ends in x_{t-1} exactly,
however many rounds there were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]


def walk_back(clean: Tensor, sigmas: Sequence[float], denoise: Denoise, rounds: int) -> Iterator[tuple[Tensor, Tensor]]:
    """x_t and e_t at every level, lowest first.

    Args:
        clean: x_0, `[n, c, h, w]`.
        sigmas: levels above 0, rising.
        denoise: D.
        rounds: how often each level is solved, at least once.
    """
    x, before = clean, 0.0
    for sigma in sigmas:
        here, found = x, x
        for _ in range(rounds):
            found = (here - denoise(here, sigma)) / sigma
            here = x + (sigma - before) * found
        x, before = here, sigma
        yield x, found

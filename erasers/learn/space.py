"""What a model predicts, and how its predictions, clean latents and noise turn into each other.

Latents are in the units of their noise level sigma, as hosts sample in: x = (1 - sigma) * x0 + sigma * noise for
"flow", x = x0 + sigma * noise for all others. "cosmos flow" predicts noise - x0 as "flow" does, and "raw v" takes v of
x as it is, which "v" scales to unit variance first. A target that is an affine combination of predictions with weights
that sum to 1 is the same in every space; only the size of the error differs, and it is taken in the model's own; for
"edm" in that of "v", which differs by a factor of sigma alone.
"""

from __future__ import annotations

from torch import Tensor

EPS, V, FLOW, EDM, COSMOS, RAW_V = "eps", "v", "flow", "edm", "cosmos flow", "raw v"


def own_space(kind: str, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """The prediction in the model's own space that belongs to a denoised latent.

    Args:
        kind: EPS, V, FLOW, EDM, COSMOS or RAW_V.
        x, denoised: `[n, c, h, w]`.
        sigma: `[n]`.
    """
    s = wide(sigma, x)
    if kind in (V, EDM):
        return (x / (1 + s**2) - denoised) * (1 + s**2).sqrt() / s
    if kind == RAW_V:
        return (x - denoised * (1 + s**2).sqrt()) / s
    if kind == COSMOS:
        return (x / (1 + s) - denoised) * (1 + s) / s
    return (x - denoised) / s


def denoised_from(kind: str, x: Tensor, sigma: Tensor, own: Tensor) -> Tensor:
    """The denoised latent that belongs to a prediction in the model's own space; `own_space` turned round."""
    s = wide(sigma, x)
    if kind in (V, EDM):
        return x / (1 + s**2) - own * s / (1 + s**2).sqrt()
    if kind == RAW_V:
        return (x - own * s) / (1 + s**2).sqrt()
    if kind == COSMOS:
        return x / (1 + s) - own * s / (1 + s)
    return x - own * s


def mixed(kind: str, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Clean latents with noise mixed in at level sigma `[n]`."""
    s = wide(sigma, clean)
    return clean * (1 - s if kind == FLOW else 1) + noise * s


def wide(sigma: Tensor, like: Tensor) -> Tensor:
    """Levels `[n]` as `[n, 1, ...]`, to go with `like`."""
    return sigma.to(like).view(-1, *[1] * (like.ndim - 1))

"""A k-sparse autoencoder of states (Gao et al., Scaling and evaluating sparse autoencoders, 2024, arXiv 2406.04093).

    x = s (h - b_pre),   z = TopK(relu(W_e x + b_lat)),   h^ = W_d z / s + b_pre
    loss = |x - W_d z|^2 + 1/32 |(x - W_d z) - W_d z_dead|^2

with columns of W_d of length 1, W_e = W_d^T at first, and z_dead the largest of those latents that have not been among
the k for a while. s makes the mean square of x one, and b_pre is the mean state; neither is learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..algebra.hooks import gradients
from ..target import Track, untracked

_AUX = 1 / 32
_DEAD = 50
"""Steps after which a latent that was never among the k counts as dead; published are 10^7 tokens."""


@dataclass(frozen=True, eq=False)
class SparseCode:
    """A trained autoencoder, float32.

    Attributes:
        encoder: W_e, `[m, d]`.
        bias: b_lat, `[m]`.
        decoder: W_d, `[d, m]`.
        centre: b_pre, `[d]`.
        scale: s.
        k: latents that are kept.
    """

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    centre: Tensor
    scale: float
    k: int

    def latents(self, states: Tensor, kept: bool = True) -> Tensor:
        """States `[..., d]` to latents `[..., m]`, the k largest or all; none is below 0."""
        found = torch.relu(self.scale * (states.to(self.centre) - self.centre) @ self.encoder.T + self.bias)
        return largest(found, self.k) if kept else found

    def directions(self, latents: Tensor) -> Tensor:
        """What latents `[..., m]` add to a state, `[..., d]`."""
        return latents @ self.decoder.T / self.scale

    def unexplained(self, states: Tensor) -> float:
        """The share of the variance of states `[n, d]` that is lost."""
        own = states.to(self.centre) - self.centre
        return float((own - self.directions(self.latents(states))).square().sum() / own.square().sum())


def largest(latents: Tensor, k: int) -> Tensor:
    """The k largest of each row, zeros elsewhere."""
    values, places = latents.topk(min(k, latents.shape[-1]), dim=-1)
    return torch.zeros_like(latents).scatter(-1, places, values)


def fit_sparse_code(
    states: Tensor,
    expansion: int,
    k: int,
    steps: int,
    batch: int,
    lr: float,
    generator: Generator,
    track: Track = untracked,
) -> SparseCode:
    """Train one on states `[n, d]`, on their device; the generator is of the CPU, `track` goes through the steps."""
    width, centre = states.shape[1], states.mean(0)
    scale = float((states - centre).square().mean().clamp_min(1e-12).rsqrt())
    rows = scale * (states - centre)
    decoder = torch.randn(width, expansion * width, generator=generator).to(rows)
    decoder = decoder / decoder.norm(dim=0)
    learned = [decoder.T.clone(), torch.zeros(expansion * width).to(rows), decoder]
    for tensor in learned:
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(learned, lr=lr)
    idle = torch.zeros(expansion * width, device=rows.device)
    for _ in track(range(steps), steps):
        x = rows[torch.randint(len(rows), (batch,), generator=generator).to(rows.device)]
        with gradients(in_place=False):
            loss, used = _loss(x, learned, k, idle >= _DEAD)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        idle = torch.where(used, 0, idle + 1)
        with torch.no_grad():
            learned[2].div_(learned[2].norm(dim=0).clamp_min(1e-12))
    encoder, bias, decoder = (tensor.detach() for tensor in learned)
    return SparseCode(encoder, bias, decoder, centre, scale, k)


def _loss(x: Tensor, learned: list[Tensor], k: int, dead: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and which latents were among the k."""
    encoder, bias, decoder = learned
    every = torch.relu(x @ encoder.T + bias)
    latents = largest(every, k)
    error = x - latents @ decoder.T
    loss = error.square().mean()
    if bool(dead.any()):
        again = largest(every * dead, x.shape[1] // 2)
        loss = loss + _AUX * (error.detach() - again @ decoder.T).square().mean()
    return loss, (latents > 0).any(0)

"""The k-sparse autoencoder against its equations, and on states that are sparse."""

from __future__ import annotations

import torch
from lethe.erasers.learn.sparse_code import SparseCode, _loss, fit_sparse_code, largest
from torch import Tensor


def sparse_states(count: int = 2000) -> Tensor:
    """Two of 12 directions each, far from the origin."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:12]
    chosen = torch.stack([torch.randperm(12, generator=generator)[:2] for _ in range(count)])
    amounts = torch.rand(count, 2, generator=generator) + 0.5
    return (directions[chosen] * amounts[..., None]).sum(1) * 30 + 7


def fitted(steps: int, seed: int = 0, states: Tensor | None = None) -> SparseCode:
    own = sparse_states() if states is None else states
    return fit_sparse_code(own, 2, 4, steps, 256, 1e-2, torch.Generator().manual_seed(seed))


def test_only_the_largest_stay() -> None:
    rows = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    assert torch.equal(largest(rows, 2), torch.tensor([[3.0, 0.0, 2.0], [0.0, 0.0, 5.0]]))
    assert torch.equal(largest(rows, 9), rows)


def test_latents_and_directions_are_the_equations() -> None:
    code, states = fitted(20), sparse_states(5)
    assert bool(code.bias.any())
    for state in states:
        every = [
            max(0.0, float(code.scale * (state - code.centre) @ row + bias))
            for row, bias in zip(code.encoder, code.bias, strict=True)
        ]
        kept = [value if sorted(every).index(value) >= len(every) - code.k else 0.0 for value in every]
        assert torch.allclose(code.latents(state, kept=False), torch.tensor(every), atol=1e-4)
        assert torch.allclose(code.latents(state), torch.tensor(kept), atol=1e-4)
        found = sum(value * code.decoder[:, i] for i, value in enumerate(every)) / code.scale
        assert torch.allclose(code.directions(torch.tensor(every)), found, atol=1e-3)


def test_it_starts_tied_with_columns_of_length_one_and_learns_what_is_sparse() -> None:
    states, start, code = sparse_states(), fitted(0), fitted(400)
    assert torch.equal(start.encoder, start.decoder.T) and not start.bias.any()
    for own in (start, code):
        assert torch.allclose(own.decoder.norm(dim=0), torch.ones(32), atol=1e-5)
        assert torch.equal(own.centre, states.mean(0))
        scaled = own.scale * (states - own.centre)
        assert torch.allclose(scaled.square().mean(), torch.tensor(1.0), atol=1e-4)
    assert code.unexplained(states) < 0.05 < 0.3 < start.unexplained(states)
    lost = (states - code.centre - code.directions(code.latents(states))).square().sum()
    assert torch.allclose(lost / (states - states.mean(0)).square().sum(), torch.tensor(code.unexplained(states)))


def test_the_seed_decides() -> None:
    assert torch.equal(fitted(5).encoder, fitted(5).encoder)
    assert not torch.equal(fitted(5).encoder, fitted(5, seed=1).encoder)


def test_dead_latents_explain_the_rest() -> None:
    generator = torch.Generator().manual_seed(3)
    x, w_e, bias = (torch.randn(*shape, generator=generator) for shape in ((6, 4), (8, 4), (8,)))
    w_d = torch.randn(4, 8, generator=generator)
    every = torch.relu(x @ w_e.T + bias)
    error = x - largest(every, 2) @ w_d.T
    alive, used = _loss(x, [w_e, bias, w_d], 2, torch.zeros(8, dtype=torch.bool))
    assert torch.allclose(alive, error.square().mean())
    assert used.tolist() == [bool(column.any()) for column in largest(every, 2).T]
    dead = torch.tensor([True] * 5 + [False] * 3)
    again = largest(torch.where(dead, every, 0), 2) @ w_d.T
    both = _loss(x, [w_e, bias, w_d], 2, dead)[0]
    assert torch.allclose(both, alive + (error - again).square().mean() / 32)
    assert not torch.allclose(both, alive)

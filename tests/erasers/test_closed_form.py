"""The closed form against the published formula, solved the slow way: per layer, with explicit inverses."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.closed_form import Kept, RidgeSystem, solve_edit
from lethe.erasers.errors import NumericsError
from lethe.erasers.methods.uce import METHOD, edit_embeddings
from torch import Tensor

SIZES = [(1, 0, 7), (1, 5, 7), (1, 1, 7), (3, 4, 8), (7, 1, 5), (20, 77, 16), (231, 40, 33), (3, 77, 231)]
"""Erased and preserved rows and their width: every route through the solver."""


def _rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _textbook(w: Tensor, c: Tensor, g: Tensor, p: Tensor, s: Tensor, t: Tensor, lam: float) -> Tensor:
    """Equation 7 of UCE for one layer, sums of outer products and an inverse."""
    left, right = lam * w, lam * torch.eye(w.shape[1], dtype=w.dtype)
    for row, target, weight in zip(c, g, s, strict=True):
        left = left + weight * torch.outer(w @ target, row)
        right = right + weight * torch.outer(row, row)
    for row, weight in zip(p, t, strict=True):
        left = left + weight * torch.outer(w @ row, row)
        right = right + weight * torch.outer(row, row)
    return left @ torch.linalg.inv(right)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _edited(w: Tensor, operator: object) -> Tensor:
    up, down = operator.factors(w)  # type: ignore[attr-defined]
    return w + up @ down


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_one_operator_gives_every_layers_textbook_solution(n: int, m: int, d: int) -> None:
    c, g, p = _rows(n, d, 1), _rows(n, d, 2), _rows(m, d, 3)
    s, t = torch.rand(n, dtype=torch.float64) + 0.1, torch.rand(m, dtype=torch.float64) + 0.1
    operator = solve_edit(c, g, p, 0.5, s, t)
    assert (operator.dense is None) == (n < d)
    for layer, outputs in enumerate((1, 5, d, 4 * d)):
        w = _rows(outputs, d, 10 + layer)
        expected = _textbook(w, c, g, p, s, t, 0.5)
        assert _error(_edited(w, operator), expected) < 1e-10


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_float32_rows_are_solved_in_float64(n: int, m: int, d: int) -> None:
    c, g, p = _rows(n, d, 1).float(), _rows(n, d, 2).float(), _rows(m, d, 3).float()
    operator = solve_edit(c, g, p, 0.5)
    assert all(tensor.dtype == torch.float32 for tensor in operator.tensors().values())
    w = _rows(5, d, 4)
    ones = torch.ones(n, dtype=torch.float64), torch.ones(m, dtype=torch.float64)
    expected = _textbook(w, c.double(), g.double(), p.double(), *ones, 0.5)
    assert _error(_edited(w.float(), operator).double(), expected) < 1e-5


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_blocks_and_a_kept_gram_matrix_give_the_same_as_rows_at_once(n: int, m: int, d: int) -> None:
    c, g, p = _rows(n, d, 1), _rows(n, d, 2), _rows(m, d, 3)
    kept = Kept(p.T @ p) if m else None
    expected = solve_edit(c, g, p, 0.3, preserve_weights=torch.full((m,), 0.25))
    for _ in range(2):
        system = RidgeSystem(d, kept, 0.25)
        for start in range(0, n, 3):
            system.erase(c[start : start + 3], g[start : start + 3])
        assert abs(system.mean_square - float(c.square().sum(1).mean())) < 1e-9
        w = _rows(4, d, 5)
        assert _error(_edited(w, system.solve(0.3, torch.float64)), _edited(w, expected)) < 1e-10


@pytest.mark.parametrize(("n", "m", "d", "scale"), [(1, 1, 7, 1.0), (3, 5, 16, 0.25), (30, 47, 231, 4.0)])
def test_few_kept_rows_give_the_same_without_a_matrix_of_their_width(n: int, m: int, d: int, scale: float) -> None:
    c, g, p, w = _rows(n, d, 1), _rows(n, d, 2), _rows(m, d, 3), _rows(4, d, 4)
    found = []
    for kept in (Kept(rows=p), Kept(p.T @ p)):
        system = RidgeSystem(d, kept, scale)
        system.erase(c, g)
        found.append(_edited(w, system.solve(0.3, torch.float64)))
        assert kept.rows is None or kept._gram is None
    assert _error(found[0], found[1]) < 1e-10


def test_more_rows_than_half_the_width_are_solved_by_their_matrix() -> None:
    c, g, p, w = _rows(3, 8, 1), _rows(3, 8, 2), _rows(2, 8, 3), _rows(4, 8, 4)
    found = []
    for kept in (Kept(rows=p), Kept(p.T @ p)):
        system = RidgeSystem(8, kept)
        system.erase(c, g)
        found.append(_edited(w, system.solve(0.3, torch.float64)))
    assert _error(found[0], found[1]) < 1e-12


def test_the_kept_rows_factor_is_computed_once_for_a_ridge() -> None:
    rows = _rows(5, 9, 1)
    kept = Kept(rows.T @ rows)
    first = kept.factor(0.5)
    assert kept.factor(0.5) is first
    other = kept.factor(0.25)
    assert torch.allclose(other @ other.T, rows.T @ rows + 0.25 * torch.eye(9, dtype=torch.float64))


def test_rows_that_keep_coming_take_no_more_memory_than_two_matrices() -> None:
    system = RidgeSystem(8)
    for seed in range(50):
        system.erase(_rows(3, 8, seed), _rows(3, 8, seed + 100))
    held = sum(block.numel() for pair in system._blocks for block in pair)
    assert held <= 2 * 8 * 10


def test_the_hook_and_the_weights_agree() -> None:
    operator = solve_edit(_rows(3, 9, 1), _rows(3, 9, 2), _rows(4, 9, 3), 0.1)
    w, x = _rows(5, 9, 4).float(), _rows(77, 9, 5).float()
    up, down = operator.factors(w)
    assert torch.allclose(operator.apply(x, 0.7) @ w.T, x @ (w + 0.7 * up @ down).T, atol=1e-5)


def test_a_large_ridge_changes_nothing_and_a_small_one_meets_the_targets() -> None:
    c, g, p = _rows(2, 16, 1), _rows(2, 16, 2), _rows(5, 16, 3)
    loose, tight = solve_edit(c, g, p, 1e9), solve_edit(c, g, p, 1e-8)
    assert torch.allclose(loose.apply(c.float()), c.float(), atol=1e-5)
    assert torch.allclose(tight.apply(c.float()), g.float(), atol=1e-4)
    assert torch.allclose(tight.apply(p.float()), p.float(), atol=1e-4)


def test_the_order_of_concepts_does_not_matter() -> None:
    c, g, p = _rows(4, 12, 1), _rows(4, 12, 2), _rows(3, 12, 3)
    order = torch.tensor([2, 0, 3, 1])
    x = _rows(6, 12, 4).float()
    one, other = solve_edit(c, g, p, 0.1), solve_edit(c[order], g[order], p, 0.1)
    assert torch.allclose(one.apply(x), other.apply(x), atol=1e-6)


def test_strength_zero_returns_the_very_features() -> None:
    x = _rows(4, 9, 1).half()
    assert solve_edit(_rows(1, 9, 2), _rows(1, 9, 3), _rows(0, 9, 4), 0.1).apply(x, 0.0) is x


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    c, g, p = _rows(2, 6, 1), _rows(2, 6, 2), _rows(2, 6, 3)
    for index in range(3):
        rows = [c.clone(), g.clone(), p.clone()]
        rows[index][1, 2] = bad
        with pytest.raises(NumericsError, match="not finite"):
            solve_edit(*rows, 0.1)


def test_a_singular_system_is_refused() -> None:
    row = torch.ones(1, 6)
    with pytest.raises(NumericsError, match="singular"):
        solve_edit(row, row * 2, row[:0], 0.0)


def test_uce_runs_on_plain_tensors() -> None:
    c, g, p = _rows(3, 24, 1), _rows(3, 24, 2), _rows(10, 24, 3)
    settings = METHOD.spec.settings({"lam": 0.5, "lam_scale": "absolute", "preserve_scale": 1.0})
    w = _rows(8, 24, 4)
    ones = torch.ones(3, dtype=torch.float64), torch.ones(10, dtype=torch.float64)
    expected = _textbook(w, c, g, p, *ones, 0.5)
    assert _error(_edited(w, edit_embeddings(c, g, p, settings)), expected) < 1e-10

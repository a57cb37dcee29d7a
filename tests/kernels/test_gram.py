"""Gram matrices against the textbook product in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lethe.kernels.errors import KernelError
from lethe.kernels.gram import OPERATION, accumulate_, gram_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("count", "width"), [(1, 1), (77, 7), (231, 300), (5000, 40), (512, 600)])
@pytest.mark.usefixtures("run")
def test_batches_add_up(
    count: int, width: int, rows: torch.dtype, dtype: torch.dtype, close: Callable[..., None]
) -> None:
    x, weights = torch.randn(2 * count, width).to(rows), torch.rand(count)
    gram = torch.zeros(width, width, dtype=dtype)
    accumulate_(gram, x[:count], weights)
    accumulate_(gram, x[count:])
    wide = x.double()
    close(gram, wide[:count].T @ (wide[:count] * weights.double()[:, None]) + wide[count:].T @ wide[count:])


@pytest.mark.usefixtures("run")
def test_views_and_no_rows(close: Callable[..., None]) -> None:
    x = torch.randn(80, 200)[::2, 100:].T.contiguous().T
    gram = torch.eye(100, dtype=torch.float64)
    accumulate_(gram, x[:0])
    assert gram.equal(torch.eye(100, dtype=torch.float64))
    accumulate_(gram, x)
    close(gram, torch.eye(100, dtype=torch.float64) + x.double().T @ x.double())


def test_few_or_narrow_rows_take_one_product_and_many_wide_ones_take_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from lethe.kernels.reference import gram as reference

    taken: list[str] = []
    for name in ("accumulate_", "accumulate_blocks_"):
        monkeypatch.setattr(reference, name, lambda *given, name=name: taken.append(name))
    for size in ((1, 768), (127, 2048), (4096, 256), (128, 512)):
        gram_of(torch.zeros(size))
    assert taken == ["accumulate_"] * 3 + ["accumulate_blocks_"]


def test_a_gram_matrix_of_its_own(close: Callable[..., None]) -> None:
    x, weights = torch.randn(300, 520), torch.rand(300)
    found = gram_of(x.bfloat16(), weights)
    wide = x.bfloat16().double()
    assert found.dtype == torch.float64
    close(found, wide.T @ (wide * weights.double()[:, None]))
    assert found.equal(found.T)
    assert gram_of(x[:0]).equal(torch.zeros(520, 520, dtype=torch.float64))


def test_shapes_that_disagree_are_refused() -> None:
    x, gram = torch.randn(5, 4), torch.zeros(4, 4)
    for wrong in ((gram[:3], x), (gram, x[:, :3]), (gram, x, torch.rand(4)), (gram.half(), x)):
        with pytest.raises(KernelError):
            accumulate_(*wrong)


def test_backends_are_those_that_are_tested() -> None:
    assert [backend.name for backend in OPERATION.backends] == ["blocks", "eager"]

"""Stacked gated adapters against the sum over adapters, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lethe.kernels.errors import KernelError
from lethe.kernels.stacked import OPERATION, stacked
from torch import Tensor

SHAPES = [(2, 1, 33, 1, 17), (3, 7, 40, 256, 24), (2, 77, 96, 100, 80), (1, 231, 64, 32, 65), (1, 512, 48, 4, 64)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _given(
    rows: int, tokens: int, width: int, rank: int, out: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    sizes = ((rows, tokens, width), (rows, tokens, out), (rank, width), (out, rank))
    x, base, down, up = (torch.randn(size).to(device, dtype) for size in sizes)
    return x, base, down / width**0.5, up / max(rank, 1) ** 0.5, torch.rand(rows, rank).to(device)


def _truth(x: Tensor, base: Tensor, down: Tensor, up: Tensor, gates: Tensor | None) -> Tensor:
    """The sum over adapters of rank 1, one by one."""
    x, base, down, up = (tensor.cpu().double() for tensor in (x, base, down, up))
    y = base.clone()
    for i in range(down.shape[0]):
        gate = 1.0 if gates is None else gates.cpu().double()[:, i, None, None]
        y = y + gate * (x @ down[i])[..., None] * up[:, i]
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("run")
def test_equals_the_sum_over_adapters(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, close: Callable[..., None]
) -> None:
    x, base, down, up, gates = _given(*shape, dtype, device)
    before = base.clone()
    for given in (gates, gates[:1], None):
        y = stacked(x, base, down, up, given)
        assert y.dtype == dtype
        close(y, _truth(x, base, down, up, given))
    assert base.equal(before)


@pytest.mark.usefixtures("run")
def test_views_and_other_numbers_of_axes(device: torch.device, close: Callable[..., None]) -> None:
    x, base, down, up, gates = _given(2, 77, 96, 8, 80, torch.float16, device)
    truth = _truth(x, base, down, up, gates)
    turned = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (x, base, down, up, gates)]
    assert not any(tensor.is_contiguous() for tensor in turned)
    close(stacked(*turned), truth)
    close(stacked(x[:, :, None], base[:, :, None], down, up, gates), truth[:, :, None])
    close(stacked(x[:, 0], base[:, 0], down, up, gates), truth[:, 0])
    wide = torch.cat([x, x], -1)
    close(stacked(wide[..., 96:], base, down, up, gates), truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("run")
def test_closed_gates_leave_the_base_bit_for_bit(dtype: torch.dtype, device: torch.device) -> None:
    x, base, down, up, gates = _given(3, 7, 40, 5, 24, dtype, device)
    gates[1] = 0
    y = stacked(x, base, down, up, gates)
    assert y[1].equal(base[1])
    assert not y[0].equal(base[0])
    assert not y[2].equal(base[2])
    assert stacked(x, base, down, up, torch.zeros_like(gates)).equal(base)


@pytest.mark.usefixtures("run")
def test_empty_stacks_and_batches(device: torch.device) -> None:
    x, base, down, up, gates = _given(2, 7, 40, 0, 24, torch.float32, device)
    y = stacked(x, base, down, up, gates)
    assert y.equal(base)
    assert y.data_ptr() != base.data_ptr()
    x, base, down, up, gates = _given(2, 0, 40, 3, 24, torch.float32, device)
    assert stacked(x, base, down, up, gates).shape == (2, 0, 24)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("run")
def test_keys_and_values_behind_one_down_are_one_call(
    dtype: torch.dtype, device: torch.device, close: Callable[..., None]
) -> None:
    """A shared A, as an operator on what both read has it: outputs side by side, as one fused projection gives them."""
    x, key, down, up, gates = _given(2, 77, 96, 5, 80, dtype, device)
    _, value, _, above, _ = _given(2, 77, 96, 5, 33, dtype, device)
    fused = torch.cat([key, value], -1)
    for given in (gates, gates[:1], None):
        found = stacked(x, fused, down, torch.cat([up, above]), given).split([80, 33], -1)
        close(found[0], _truth(x, key, down, up, given))
        close(found[1], _truth(x, value, down, above, given))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.usefixtures("run")
def test_gradients(shared: bool, device: torch.device, close: Callable[..., None]) -> None:
    given = list(_given(2, 7, 40, 5, 24, torch.float32, device))
    if shared:
        given[4] = given[4][:1]
    weights = torch.randn(2, 7, 24)
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    found = torch.autograd.grad((stacked(*leaves) * weights.to(device)).sum(), leaves)
    truth = [tensor.cpu().double().requires_grad_() for tensor in given]
    wanted = torch.autograd.grad((_truth(*truth) * weights.double()).sum(), truth)
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


def test_shapes_that_disagree_are_refused() -> None:
    x, base, down, up, gates = _given(2, 7, 40, 5, 24, torch.float32, torch.device("cpu"))
    for wrong in (
        (x, base[:, :6], down, up, gates),
        (x, base, down[:, :9], up, gates),
        (x, base, down[:4], up, gates),
        (x, base, down, up, gates[:, :4]),
        (x, base, down, up, gates.repeat(2, 1)[:3]),
        (x[0, 0], base[0, 0], down, up, None),
    ):
        with pytest.raises(KernelError, match="rows"):
            stacked(*wrong)


def test_backends_are_those_that_are_tested() -> None:
    assert [backend.name for backend in OPERATION.backends] == ["eager", "triton"]

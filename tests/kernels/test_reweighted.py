"""Weighted attention and what is read off its map, against the map itself in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lethe.kernels.constraints import interpreted
from lethe.kernels.errors import KernelError, NoBackendError
from lethe.kernels.reweighted import OPERATION, Read, reweighted
from torch import Tensor

SHAPES = [(2, 2, 7, 77, 40, 40, 3), (1, 1, 1, 1, 8, 8, 1), (1, 2, 70, 231, 16, 24, 2), (1, 1, 7, 512, 64, 16, 8)]
DTYPES = [torch.float16] if interpreted() else [torch.float32, torch.float16, torch.bfloat16]


def _given(
    b: int, h: int, n: int, t: int, e: int, f: int, m: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    q, k, v = (torch.randn(b, h, *size).to(device, dtype) for size in ((n, e), (t, e), (t, f)))
    bias, scale, chosen = torch.randn(b, t), 2 * torch.rand(b, t), torch.rand(b, m, t) > 0.6
    # Some tokens, and a whole block of them, are shut out.
    bias[:, : t // 3] = -torch.inf
    chosen[:, 0] |= ~chosen.any(1)
    return q, k, v, bias.to(device), scale.to(device), chosen.to(device)


def _truth(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Tensor, chosen: Tensor, how: str
) -> tuple[Tensor, Tensor]:
    """Token by token, so that nothing is shared with the code under test."""
    logits = torch.einsum("bhne,bhte->bhnt", q, k) / q.shape[-1] ** 0.5 + bias[:, None, None]
    p = torch.exp(logits - logits.logsumexp(-1, keepdim=True))
    out = torch.einsum("bhnt,bt,bhtf->bhnf", p, scale, v)
    theirs = p[:, :, :, None] * chosen[:, None, None]
    return out, theirs.sum(-1) if how == "sum" else theirs.amax(-1)


def _wide(given: tuple[Tensor, ...]) -> list[Tensor]:
    return [t.cpu() if t.dtype == torch.bool else t.detach().cpu().double() for t in given]


def _refuses(backend: str, given: tuple[Tensor, ...], how: str) -> bool:
    """Torch's own attention cannot read a maximum, and says so."""
    if (backend, how) != ("vendor", "max"):
        return False
    with pytest.raises(NoBackendError, match="vendor: has no read 'max'"):
        reweighted(*given[:3], read=Read(given[5], "max"))
    return True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["sum", "max"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("run")
def test_output_and_read_out(
    shape: tuple[int, ...],
    how: str,
    dtype: torch.dtype,
    backend: str,
    device: torch.device,
    close: Callable[..., None],
) -> None:
    q, k, v, bias, scale, chosen = given = _given(*shape, dtype, device)
    if _refuses(backend, given, how):
        return
    out, read = reweighted(q, k, v, bias, scale, Read(chosen, how))
    wanted, wanted_read = _truth(*_wide(given), how)
    assert (out.dtype, read.dtype) == (dtype, torch.float32)
    close(out, wanted)
    close(read, wanted_read, dtype)
    plain, none = reweighted(q, k, v)
    ones = torch.ones(shape[0], shape[3], dtype=torch.float64)
    close(plain, _truth(*_wide((q, k, v)), torch.zeros_like(ones), ones, chosen.cpu(), how)[0])
    assert none is None


@pytest.mark.parametrize("how", ["sum", "max"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]])
@pytest.mark.usefixtures("run")
def test_gradients(
    shape: tuple[int, ...], how: str, backend: str, device: torch.device, close: Callable[..., None]
) -> None:
    dtype = torch.float16 if backend == "triton" else torch.float32
    *floats, chosen = given = _given(*shape, dtype, device)
    if _refuses(backend, given, how):
        return
    leaves = [tensor.clone().requires_grad_() for tensor in floats]
    truth = [tensor.requires_grad_() for tensor in _wide(tuple(floats))]
    out, read = reweighted(*leaves, Read(chosen, how))
    wanted, wanted_read = _truth(*truth, chosen.cpu(), how)
    to_out, to_read = torch.randn(out.shape), 3 * torch.randn(read.shape)
    loss = (out.float() * to_out.to(device)).sum() + (read * to_read.to(device)).sum()
    found = torch.autograd.grad(loss, leaves)
    exact = torch.autograd.grad((wanted * to_out).sum() + (wanted_read * to_read).sum(), truth)
    for one, other in zip(found, exact, strict=True):
        close(one, other.nan_to_num(), dtype)


@pytest.mark.usefixtures("run")
def test_views_as_hosts_have_them(backend: str, device: torch.device, close: Callable[..., None]) -> None:
    """Heads lie side by side in the last axis; a read-out of groups without tokens is zero."""
    dtype = torch.float16 if backend == "triton" else torch.float32
    q, k, v = (torch.randn(2, size, 2, 40).to(device, dtype).transpose(1, 2) for size in (9, 77, 77))
    ones, none = torch.ones(2, 77), torch.zeros(2, 1, 77, dtype=torch.bool, device=device)
    wanted, _ = _truth(*_wide((q, k, v)), 0 * ones, ones, none.cpu(), "sum")
    out, read = reweighted(q, k, v, read=Read(none))
    close(out, wanted)
    assert bool((read == 0).all())
    turned = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (q, k, v)]
    close(reweighted(*turned)[0], wanted)


@pytest.mark.usefixtures("run")
def test_a_weight_of_one_changes_nothing_and_of_zero_removes(backend: str, device: torch.device) -> None:
    dtype = torch.float16 if backend == "triton" else torch.float32
    q, k, v, _, _, _ = _given(*SHAPES[0], dtype, device)
    ones = torch.ones(2, 77, device=device)
    plain, _ = reweighted(q, k, v)
    assert reweighted(q, k, v, scale=ones)[0].equal(plain)
    ones[:, 5:] = 0
    alone, _ = reweighted(q, k[:, :, :5], v[:, :, :5])
    assert torch.allclose(reweighted(q, k, v, bias=ones.log())[0], alone, atol=2e-3)


def test_shapes_that_disagree_are_refused() -> None:
    q, k, v, bias, scale, chosen = _given(*SHAPES[0], torch.float32, torch.device("cpu"))
    for wrong in (
        (q, k[:1], v),
        (q, k, v[:, :, :9]),
        (q[..., :9], k, v),
        (q, k, v, bias[:1]),
        (q, k, v, None, scale[:, :9]),
        (q, k, v, None, None, Read(chosen[0])),
        (q, k, v, None, None, Read(chosen.float())),
        (q, k[:, :, :0], v[:, :, :0]),
    ):
        with pytest.raises(KernelError):
            reweighted(*wrong)


def test_backends_are_those_that_are_tested() -> None:
    assert [backend.name for backend in OPERATION.backends] == ["vendor", "eager", "triton"]

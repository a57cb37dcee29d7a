"""Low-rank changes of many weights against float64, and their undoing."""

from __future__ import annotations

import pytest
import torch
from lethe.kernels.constraints import interpreted
from lethe.kernels.errors import KernelError
from lethe.kernels.grouped import OPERATION, add_low_rank_, keep, restore_
from torch import Tensor

SHAPES = [(80, 96, 4), (17, 33, 1), (1, 7, 70), (64, 64, 16), (130, 48, 256)]
ALIGNED = [(64, 64, 4), (80, 160, 1)]
STEPS = {
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float8_e4m3fn: 2.0**-3,
    torch.float8_e5m2: 2.0**-2,
}
"""Distance of neighbouring numbers, relative: rounding errs by half of it."""


def _given(
    shapes: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device, factors: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    weights = [torch.randn(o, d).to(dtype).to(device) for o, d, _ in shapes]
    downs = [torch.randn(r, d).to(device, factors) for _, d, r in shapes]
    ups = [(torch.randn(o, r) / r**0.5).to(device, factors) for o, _, r in shapes]
    return weights, downs, ups


def _check(weights: list[Tensor], sources: list[Tensor], downs: list[Tensor], ups: list[Tensor], s: float) -> None:
    for weight, source, down, up in zip(weights, sources, downs, ups, strict=True):
        truth = source.double() + s * up.double() @ down.double()
        step = STEPS[weight.dtype]
        if weight.dtype == torch.float32:
            # Sums in any order err by at most half a step per term, of all terms' sizes together.
            terms = source.double().abs() + abs(s) * up.double().abs() @ down.double().abs()
            assert bool(((weight.double() - truth).abs() <= (len(down) + 3) * step / 2 * terms).all())
            continue
        # 8-bit formats have fixed steps below 2^-6.
        error = (weight.double() - truth).abs() / truth.abs().clamp_min(2.0**-5)
        if not interpreted() or weight.dtype == torch.float16:
            assert float(error.max()) <= 0.51 * step
        else:
            # The interpreter cuts bfloat16 off, and drops the carry when rounding to 8 bits: some come out halved.
            assert float(error.quantile(0.9)) <= 1.01 * step
            assert float(error.max()) <= (1.01 * step if weight.dtype == torch.bfloat16 else 0.51)


@pytest.mark.parametrize("factors", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", list(STEPS))
@pytest.mark.parametrize("shapes", [SHAPES, ALIGNED])
@pytest.mark.usefixtures("run")
def test_every_weight_changes_by_its_own_factors(
    shapes: list[tuple[int, int, int]], dtype: torch.dtype, factors: torch.dtype, device: torch.device
) -> None:
    weights, downs, ups = _given(shapes, dtype, device, factors)
    kept = keep(weights)
    add_low_rank_(weights, downs, ups, 0.7)
    _check(weights, kept, downs, ups, 0.7)


@pytest.mark.usefixtures("run")
def test_views_are_changed_in_place_and_nothing_beside_them(device: torch.device) -> None:
    _, downs, ups = _given([(33, 17, 3), (16, 32, 3)], torch.float16, device)
    first, second = torch.randn(17, 33).half().to(device), torch.randn(40, 80).half().to(device)
    beside = second.clone()
    weights = [first.T, second[2:34:2, 5:69:2]]
    kept = keep(weights)
    downs[1], ups[1] = downs[1].T.contiguous().T, ups[1].T.contiguous().T
    add_low_rank_(weights, downs, ups)
    _check(weights, kept, downs, ups, 1.0)
    second[2:34:2, 5:69:2] = beside[2:34:2, 5:69:2]
    assert second.equal(beside)
    # Rows that begin at multiples of 16 bytes, but with gaps.
    gaps = [torch.randn(16, 64).half().to(device)[:, ::2]]
    kept, down = keep(gaps), downs[1].contiguous()
    add_low_rank_(gaps, [down], ups[1:])
    _check(gaps, kept, [down], ups[1:], 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
@pytest.mark.usefixtures("run")
def test_kept_copies_bring_back_every_bit(dtype: torch.dtype, device: torch.device) -> None:
    weights, downs, ups = _given(SHAPES[:3], dtype, device)
    kept = keep(weights)
    before = keep(weights)
    once = keep(weights)
    add_low_rank_(once, downs, ups, 0.3, kept)
    for strength in (2.0, -1.0, 0.3):
        add_low_rank_(weights, downs, ups, strength, kept)
    assert all(_bits(a).equal(_bits(b)) for a, b in zip(weights, once, strict=True))
    assert not _bits(weights[0]).equal(_bits(before[0]))
    for undo in (lambda: restore_(weights, kept), lambda: add_low_rank_(weights, downs, ups, 0.0, kept)):
        add_low_rank_(weights, downs, ups, 1.0, kept)
        undo()
        assert all(_bits(a).equal(_bits(b)) for a, b in zip(weights, before, strict=True))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.usefixtures("run")
def test_shared_downs_mixed_dtypes_and_empty_factors(device: torch.device) -> None:
    weights, downs, ups = _given([(40, 32, 3), (24, 32, 3), (8, 32, 3)], torch.float32, device)
    weights[1], downs[1], ups[0] = weights[1].half(), downs[0], ups[0].half()
    downs[2], ups[2] = downs[2][:0], ups[2][:, :0]
    kept = keep(weights)
    weights[2].zero_()
    add_low_rank_(weights, downs, ups, 0.5, kept)
    _check(weights[:2], kept[:2], downs[:2], ups[:2], 0.5)
    assert weights[2].equal(kept[2])
    add_low_rank_([], [], [])


@pytest.mark.usefixtures("run")
def test_eight_bit_floats_saturate(device: torch.device) -> None:
    weights, downs, ups = _given([(16, 16, 1)], torch.float8_e4m3fn, device)
    downs[0].fill_(100.0)
    ups[0].fill_(100.0)
    ups[0][:8] = -100.0
    add_low_rank_(weights, downs, ups)
    assert bool((weights[0].float()[8:] == 448).all())
    assert bool((weights[0].float()[:8] == -448).all())


def test_shapes_that_disagree_are_refused() -> None:
    weights, downs, ups = _given(SHAPES[:2], torch.float32, torch.device("cpu"))
    for wrong in (
        (weights, downs[:1], ups),
        (weights, downs[::-1], ups),
        (weights, downs, ups[::-1]),
        (weights, downs, ups, 1.0, [weight.half() for weight in weights]),
    ):
        with pytest.raises(KernelError):
            add_low_rank_(*wrong)


def test_backends_are_those_that_are_tested() -> None:
    assert [backend.name for backend in OPERATION.backends] == ["eager", "triton"]

"""Every test with a `backend` runs once per backend of its file's `OPERATION`.

Triton's kernels run under its interpreter, on the CPU, in the process that `test_interpreter.py` starts with
TRITON_INTERPRET=1, or on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lethe.kernels.constraints import interpreted
from lethe.kernels.dispatch import forced
from torch import Tensor

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Largest relative error (Frobenius norm) against float64.

Rounding to a dtype of unit roundoff u costs u / sqrt(3) or less: 3e-8, 2.8e-4 and 2.3e-3 for the last three. A
result goes through two roundings of its dtype and float32 sums of up to some hundred terms; the interpreter cuts
bfloat16 off instead of rounding it, which doubles its error. The limits are two to five times that.
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    names = [backend.name for backend in metafunc.module.OPERATION.backends]
    if interpreted():
        chosen: list[Any] = [name for name in names if name == "triton"]
    else:
        chosen = [name for name in names if name != "triton"]
        if "triton" in names and torch.cuda.is_available():
            chosen.append(pytest.param("triton", marks=pytest.mark.gpu))
    metafunc.parametrize("backend", chosen)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under the interpreter only Triton's tests are left."""
    if interpreted():
        cases = [(item, getattr(item, "callspec", None)) for item in items]
        items[:] = [item for item, case in cases if case and case.params.get("backend") == "triton"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and not interpreted() else "cpu")


@pytest.fixture
def run(request: pytest.FixtureRequest, backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend is forced, and memory that a kernel gets uninitialised is NaN, or a large whole number."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        found = empty(*args, **kwargs)
        return found.fill_(torch.nan if found.is_floating_point() else 99)

    monkeypatch.setattr(torch, "empty", poisoned)
    with forced(**{request.module.OPERATION.name: backend}):
        yield


@pytest.fixture
def close() -> Callable[..., None]:
    """Assert that a tensor is as near to a float64 one as its dtype, or the one that was computed in, allows."""

    def check(found: Tensor, wanted: Tensor, dtype: torch.dtype | None = None) -> None:
        assert found.shape == wanted.shape
        assert bool(torch.isfinite(found).all())
        error = float((found.detach().double().cpu() - wanted.detach().cpu()).norm() / wanted.norm().clamp_min(1e-3))
        assert error <= TOLERANCE[dtype or found.dtype], error

    return check

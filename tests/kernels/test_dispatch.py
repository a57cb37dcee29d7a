"""The choice of a backend, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lethe.kernels import constraints, dispatch
from lethe.kernels.constraints import (
    FP8,
    HALVES,
    TRITON,
    AtLeast,
    AtMost,
    Capability,
    Compiler,
    Constraint,
    Devices,
    Dtypes,
    Facts,
    Importable,
    OneOf,
)
from lethe.kernels.dispatch import Backend, Operation, forced
from lethe.kernels.errors import KernelError, NoBackendError
from lethe.kernels.report import operations, report

CPU = Facts(torch.device("cpu"), frozenset({torch.float32}), {"rank": 9}, {"read": "max"})
GPU = Facts(torch.device("cuda"), frozenset({torch.float16}), {"rank": 4}, {"read": "sum"})


def _backend(name: str, *needs: Constraint) -> Backend:
    return Backend(name, lambda: lambda: name, needs)


def _operation(*backends: Backend) -> Operation:
    return Operation("toy", "a toy", "nothing", backends)


def test_the_first_backend_that_can_runs() -> None:
    operation = _operation(
        _backend("fast", Devices(("cuda",))), _backend("middle", AtMost("rank", 8)), _backend("eager")
    )
    assert operation.choose(CPU)() == "eager"
    assert operation.choose(GPU)() == "fast"
    assert operation.choose(Facts(CPU.device, CPU.dtypes))() == "middle"


def test_a_backend_that_does_not_pay_comes_only_when_forced() -> None:
    operation = _operation(Backend("fast", lambda: lambda: "fast", pays=(AtLeast("rank", 9),)), _backend("eager"))
    assert operation.choose(CPU)() == "fast"
    assert operation.choose(GPU)() == "eager"
    with forced(toy="fast"):
        assert operation.choose(GPU)() == "fast"
    assert operation.choose(Facts(CPU.device, CPU.dtypes))() == "fast"


@pytest.mark.parametrize(
    ("need", "bad", "good", "reason"),
    [
        (Devices(("cuda", "xpu")), CPU, GPU, "runs on cuda or xpu, not on cpu"),
        (Dtypes(HALVES), CPU, GPU, "cannot take float32"),
        (AtMost("rank", 8), CPU, GPU, "takes rank up to 8, not 9"),
        (AtLeast("rank", 5), GPU, CPU, "takes rank from 5 on, not 4"),
        (OneOf("read", ("sum",)), CPU, GPU, "has no read 'max'"),
    ],
)
def test_a_constraint_says_why_it_does_not_hold(need: Constraint, bad: Facts, good: Facts, reason: str) -> None:
    assert need.refusal(bad) == reason
    assert need.refusal(good) == ""


def test_capability_is_asked_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert Capability((8, 9)).refusal(GPU) == "needs compute capability 8.9, this GPU has 8.6"
    assert not Capability((8, 9), FP8).refusal(GPU)
    assert not Capability((8, 0)).refusal(GPU)
    assert not Capability((8, 9)).refusal(CPU)
    eight = Facts(GPU.device, frozenset({torch.float16, torch.float8_e5m2}))
    assert Capability((8, 9), FP8).refusal(eight)


def test_modules_and_compilers_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Importable("torch").refusal(GPU)
    assert "no_such_module cannot be imported" in Importable("no_such_module").refusal(GPU)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(constraints.shutil, "which", lambda name: None)
    assert "no C compiler" in Compiler().refusal(GPU)
    monkeypatch.setenv("CC", "tcc")
    assert not Compiler().refusal(GPU)


def test_the_interpreter_makes_the_cpu_a_device_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert Devices(("cuda",), interpreter=True).refusal(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not Devices(("cuda",), interpreter=True).refusal(CPU)
    assert Devices(("cuda",)).refusal(CPU)


def test_a_forced_backend_runs_or_says_why_not() -> None:
    operation = _operation(_backend("fast", Devices(("cuda",))), _backend("middle"), _backend("eager"))
    with forced(toy="eager"):
        assert operation.choose(CPU)() == "eager"
        with forced(other="fast"):
            assert operation.choose(CPU)() == "eager"
        with forced(toy="fast"), pytest.raises(NoBackendError) as caught:
            operation.choose(CPU)
    assert operation.choose(CPU)() == "middle"
    assert list(caught.value.refusals) == ["fast", "middle", "eager"]
    assert caught.value.refusals["fast"] == "runs on cuda, not on cpu"
    assert "fast: runs on cuda, not on cpu" in str(caught.value)
    assert isinstance(caught.value, KernelError)


def test_what_could_be_installed_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_TOLD", set())
    operation = _operation(_backend("fast", Importable("no_such_module")), _backend("eager"))
    with caplog.at_level(logging.INFO, "lethe"):
        assert operation.choose(CPU)() == "eager"
        assert operation.choose(GPU)() == "eager"
        _operation(_backend("fast", Devices(("cuda",))), _backend("eager")).choose(CPU)
    assert len(caplog.records) == 1
    assert "no_such_module" in caplog.text


def test_a_gpu_without_triton_runs_eager_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_TOLD", set())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(constraints, "_import_failure", lambda module: f"{module} cannot be imported")
    first, later = _backend("triton", *TRITON), _backend("eager")
    with caplog.at_level(logging.INFO, "lethe"):
        assert _operation(first, later).choose(CPU)() == "eager"
        assert _operation(later, first).choose(GPU)() == "eager"
        assert not caplog.records, "nothing is lost on a CPU, or where eager comes first anyway"
        assert [_operation(first, later).choose(GPU)() for _ in range(3)] == ["eager"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "Kernels: triton is not used, triton cannot be imported; others take its place, maybe slower."
    ]


def test_functions_are_loaded_only_when_chosen() -> None:
    def broken() -> Callable[..., Any]:
        raise AssertionError("loaded")

    operation = _operation(_backend("eager"), Backend("fast", broken))
    assert operation.choose(CPU)() == "eager"


def test_the_report_names_every_backend_and_why() -> None:
    assert [operation.name for operation in operations()] == ["gram", "grouped", "reweighted", "stacked"]
    text = report()
    for operation in operations():
        assert f"  {operation.name}: {operation.title}" in text
        assert operation.decided in text
    assert "    triton: ruled out: runs on cuda, not on cpu" in text
    assert "    eager: can run, comes later" in text

"""Triton's kernels compiled for GPUs that need not be here: every launch builds, spills nothing much and fits."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not made for this platform")

NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
SHARED = 99 * 1024
"""Bytes of shared memory that a block may have on the GPUs with the least of it (compute capability 8.6 and 8.9)."""
SPILLS = 64
"""Bytes of stack per thread; a kernel that keeps its tile in memory has thousands."""


class Recorder:
    """Stands in for a kernel and keeps its launches' arguments."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.launches.append(
            dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
        )


def _compiled(kernel: Any, given: dict[str, Any], capability: int) -> Any:
    """Compile one launch as Triton would: known ones and multiples of 16 are part of the code."""
    signature, constants, known = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name], known[(i,)] = "*" + NAMES[value.dtype], [["tt.divisibility", 16]]
        elif kernel.params[i].is_constexpr or value == 1:
            signature[name], constants[(i,)] = "constexpr", value
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
            if value % 16 == 0:
                known[(i,)] = [["tt.divisibility", 16]]
    source = importlib.import_module("triton.compiler").ASTSource(kernel, signature, constants, known)
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    options = {name: value for name, value in given.items() if name.startswith("num_")}
    return triton.compile(source, target=target, options=options)


def _check(recorder: Recorder, capabilities: tuple[int, ...], folder: Path) -> None:
    assert recorder.launches
    for given in recorder.launches:
        for capability in capabilities:
            built = _compiled(recorder.kernel, given, capability)
            assert built.metadata.shared <= SHARED
            cubin = folder / "kernel.cubin"
            cubin.write_bytes(built.asm["cubin"])
            assert _stack(cubin) <= SPILLS
            # 16 bytes at a time, where rows are whole multiples of that; rows of an `up` of rank 4 are not.
            assert "st.global.v4" in built.asm["ptx"]
            assert built.asm["ptx"].count("ld.global.b16") <= 8
    recorder.launches.clear()


def _stack(cubin: Path) -> int:
    tool = Path(importlib.import_module("triton.backends.nvidia").__file__).parent / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    return int(usage.split("STACK:")[1].split()[0])


def _record(monkeypatch: pytest.MonkeyPatch, module: Any, *names: str) -> list[Recorder]:
    recorders = [Recorder(getattr(module, name)) for name in names]
    for name, recorder in zip(names, recorders, strict=True):
        monkeypatch.setattr(module, name, recorder)
    return recorders


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(("dtype", "rank"), [(torch.float16, 16), (torch.bfloat16, 112), (torch.float32, 32)])
def test_stacked(dtype: torch.dtype, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lethe.kernels.triton.stacked")
    (recorder,) = _record(monkeypatch, module, "_expand")
    x, base, down, up = (torch.zeros(size).to(dtype) for size in ((2, 77, 64), (2, 77, 640), (rank, 64), (640, rank)))
    module.stacked(x, base, down, up, torch.zeros(2, rank))
    _check(recorder, (80, 90), tmp_path)


@pytest.mark.parametrize("factors", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_grouped(dtype: torch.dtype, factors: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lethe.kernels.triton.grouped")
    (recorder,) = _record(monkeypatch, module, "_add")
    weights = [torch.zeros(640, 2048).to(dtype), torch.zeros(320, 768).to(dtype)]
    downs = [torch.zeros(4, weight.shape[1]).to(factors) for weight in weights]
    ups = [torch.zeros(len(weight), 4).to(factors) for weight in weights]
    module.add_low_rank_(weights, weights, downs, ups, 0.5)
    _check(recorder, (89,), tmp_path)


@pytest.mark.parametrize("how", ["none", "sum", "max"])
@pytest.mark.parametrize("width", [40, 128])
def test_reweighted(width: int, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lethe.kernels.triton.reweighted")
    recorders = _record(monkeypatch, module, "_forward", "_to_queries", "_to_tokens")
    q, k, v = (torch.zeros(2, size, 8, width).half().transpose(1, 2).requires_grad_() for size in (1024, 77, 77))
    chosen = None if how == "none" else torch.ones(2, 2, 77, dtype=torch.bool)
    out, read = module.reweighted(q, k, v, None, None, chosen, how)
    (out.sum() if read is None else out.sum() + read.sum()).backward()
    for recorder in recorders:
        _check(recorder, (80,), tmp_path)

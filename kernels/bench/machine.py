"""Clocks, and what a machine can do at best: its copy bandwidth and its rate of matrix products."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

ROUNDS, WARM = 9, 2
_FLUSH = 2**28


@dataclass(frozen=True)
class Machine:
    """A device and its measured limits.

    Attributes:
        device: where the work runs.
        title: its name.
        dtype: what the work is in.
        bandwidth: bytes per second of a large copy, read and written bytes together.
        rate: floating-point operations per second of a large matrix product.
    """

    device: torch.device
    title: str
    dtype: torch.dtype
    bandwidth: float
    rate: float

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that no program can be below on this machine."""
        return max(flops / self.rate, moved / self.bandwidth)


def machine(name: str, dtype: torch.dtype) -> Machine:
    """Measure a device: `cpu` or `cuda`."""
    device = torch.device(name)
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    size = 2**28 if device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    seconds = timed({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, device)
    # A limit is the best that was seen.
    return Machine(device, title, dtype, 8 * size / min(seconds["copy"]), 2 * side**3 / min(seconds["product"]))


def timed(work: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    """Seconds of each work in every round. They take turns, so that a disturbance meets all of them.

    On a GPU the clock is its own, and its cache is emptied before each turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    clock = _gpu_seconds if device.type == "cuda" else _cpu_seconds
    for turn in range(WARM + ROUNDS):
        for name, run in work.items():
            found = clock(run)
            if turn >= WARM:
                seconds[name].append(found)
    return seconds


def _cpu_seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _gpu_seconds(run: Callable[[], object]) -> float:
    torch.empty(_FLUSH, dtype=torch.int8, device="cuda").zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

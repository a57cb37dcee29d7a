"""What runs on this machine, and why."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

import torch

from .constraints import Facts
from .dispatch import Operation


@cache
def operations() -> tuple[Operation, ...]:
    """Every operation: each module of this folder that has an `OPERATION`."""
    names = sorted(found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if not found.ispkg)
    modules = [importlib.import_module(f".{name}", __package__) for name in names if not name.startswith("_")]
    return tuple(module.OPERATION for module in modules if hasattr(module, "OPERATION"))


def report() -> str:
    """Operations by device with the backend that runs, and for every other one why it does not."""
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} threads"]
    for device in devices:
        title = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        lines += ["", f"{device}: {title}"]
        for operation in operations():
            lines += [f"  {operation.name}: {operation.title}", *_backends(operation, device)]
    return "\n".join(lines)


def _backends(operation: Operation, device: torch.device) -> list[str]:
    """A line per backend for float16 on a GPU and float32 elsewhere, with nothing special asked for."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    facts = Facts(device, frozenset({dtype}), kinds={"read": "none"})
    lines, runs = [], False
    for backend in operation.backends:
        failing = backend.failing(facts)
        if failing is not None:
            state = f"ruled out: {failing.refusal(facts)}"
        else:
            state = "can run, comes later" if runs else f"runs ({operation.decided})"
            runs = True
        lines.append(f"    {backend.name}: {state}")
    return lines

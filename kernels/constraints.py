"""What a backend needs of a call and of the machine, as data."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import torch


@dataclass(frozen=True)
class Facts:
    """What is known of a call before it runs.

    Attributes:
        device: where its tensors are.
        dtypes: their floating dtypes.
        sizes: shape limits' subjects by name, such as `tokens`.
        kinds: options by name, such as `read`.
    """

    device: torch.device
    dtypes: frozenset[torch.dtype]
    sizes: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)


class Constraint(Protocol):
    """One need of a backend."""

    @property
    def installable(self) -> bool:
        """True if the user could meet the need by installing something."""
        ...

    def refusal(self, facts: Facts) -> str:
        """Why it does not hold, or nothing where it does."""
        ...


@dataclass(frozen=True)
class Devices:
    """The call's tensors are on a device of one of these types, or Triton interprets on the CPU."""

    types: tuple[str, ...]
    interpreter: bool = False
    installable = False

    def refusal(self, facts: Facts) -> str:
        found = facts.device.type
        if found in self.types or (self.interpreter and interpreted() and found == "cpu"):
            return ""
        return f"runs on {' or '.join(self.types)}, not on {found}"


@dataclass(frozen=True)
class Dtypes:
    """Every floating tensor of the call has one of these dtypes."""

    allowed: frozenset[torch.dtype]
    installable = False

    def refusal(self, facts: Facts) -> str:
        strange = sorted(str(dtype).removeprefix("torch.") for dtype in facts.dtypes - self.allowed)
        return f"cannot take {', '.join(strange)}" if strange else ""


@dataclass(frozen=True)
class Capability:
    """The GPU's compute capability is at least this one, where the call has one of the dtypes (any when empty)."""

    least: tuple[int, int]
    dtypes: frozenset[torch.dtype] = frozenset()
    installable = False

    def refusal(self, facts: Facts) -> str:
        concerned = not self.dtypes or bool(self.dtypes & facts.dtypes)
        if facts.device.type != "cuda" or not concerned:
            return ""
        found = torch.cuda.get_device_capability(facts.device)
        if found >= self.least:
            return ""
        return f"needs compute capability {self.least[0]}.{self.least[1]}, this GPU has {found[0]}.{found[1]}"


@dataclass(frozen=True)
class AtMost:
    """A size of the call is not above a limit."""

    size: str
    limit: int
    installable = False

    def refusal(self, facts: Facts) -> str:
        found = facts.sizes.get(self.size, 0)
        return "" if found <= self.limit else f"takes {self.size} up to {self.limit}, not {found}"


@dataclass(frozen=True)
class AtLeast:
    """A size of the call, where it is known, is not below a limit."""

    size: str
    limit: int
    installable = False

    def refusal(self, facts: Facts) -> str:
        found = facts.sizes.get(self.size, self.limit)
        return "" if found >= self.limit else f"takes {self.size} from {self.limit} on, not {found}"


@dataclass(frozen=True)
class OneOf:
    """An option of the call is one of these."""

    kind: str
    allowed: tuple[str, ...]
    installable = False

    def refusal(self, facts: Facts) -> str:
        found = facts.kinds.get(self.kind, "")
        return "" if found in self.allowed else f"has no {self.kind} '{found}'"


@dataclass(frozen=True)
class Importable:
    """A module can be imported."""

    module: str
    installable = True

    def refusal(self, facts: Facts) -> str:
        return _import_failure(self.module)


@dataclass(frozen=True)
class Compiler:
    """A C compiler is at hand: Triton builds its launcher with one on Linux, and brings its own on Windows."""

    installable = True

    def refusal(self, facts: Facts) -> str:
        if os.name == "nt" or interpreted() or os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc"))):
            return ""
        return "no C compiler was found (gcc or clang)"


def interpreted() -> bool:
    """True if Triton runs its kernels in Python, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _import_failure(module: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported ({error})"
    return ""


HALVES = frozenset({torch.float16, torch.bfloat16})
FLOATS = HALVES | {torch.float32}
FP8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})

TRITON: tuple[Constraint, ...] = (
    Devices(("cuda",), interpreter=True),
    Capability((8, 0)),
    Importable("triton"),
    Compiler(),
)
"""What every Triton kernel needs, the cheapest question first. Triton has no matrix instructions for older GPUs."""

"""The kernels' errors: each says what was given and what to do next."""

from __future__ import annotations

from collections.abc import Mapping


class KernelError(Exception):
    """Tensors do not fit an operation.

    Attributes:
        problem: what is wrong, naming what was given.
        advice: what to do next, including what is allowed.
    """

    __module__ = "lethe"

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice}")
        self.problem = problem
        self.advice = advice


class NoBackendError(KernelError):
    """No backend of an operation can run a call.

    Attributes:
        refusals: by backend, why it was ruled out.
    """

    __module__ = "lethe"

    def __init__(self, operation: str, refusals: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{backend}: {reason}" for backend, reason in refusals.items())
        super().__init__(
            f"Nothing can run '{operation}' here ({reasons}).",
            "Let the backend be chosen instead of forced, or change what it names.",
        )
        self.refusals = dict(refusals)
